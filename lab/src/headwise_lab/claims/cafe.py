"""Claims of the card `cafe` on the micro-world's passages, with questions of one hop and of two: declarations and measurement.

Heads are found on the split `selection`: coarse heads on its questions, fine heads on what those keep of them. Everything else is measured on
`test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from headwise.claims.cafe import declared
from headwise.claims.cafe.answers import Asked, Asker
from headwise.claims.cafe.evidence import DRAWS, SUM, UNION, above, grid, recall_findings, recall_rows
from headwise.claims.cafe.measure import ask_all
from headwise.claims.cafe.stages import Counts, Stages, coarse_heads, fine_examples, shares_of
from headwise.claims.claim import Claim, Finding
from headwise.claims.experiment import Bench, Experiment, Measured, Minutes, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.passage_sets import Labelled, Sets, Sizes
from headwise.methods.cafe.evidence import evidence_scores
from headwise.prompts.passages import PassageComposer
from headwise.stats.metrics import exact_match
from headwise_lab.microworld.registry import make_example
from headwise_lab.ranking import from_microworld

FAMILY = "cafe-world"
LIMIT = 16  # tokens of an answer
MISSES = 200  # draws in a row that do not fit, after which drawing ends
PASSAGES = 8
ANSWERED = "first line of the answer is the right one"
_DATA = (
    "micro-world: 48 questions of one hop and 48 of two over 8 passages; four coarse and two fine heads, one vote each, found on as many questions "
    "of the selection split"
)
_claim = partial(Claim, card="cafe", data=_DATA, effect="chosen", control="control")
_METRIC = "share of the gold passages that are kept, difference paired by question"


def _answers() -> tuple[Claim, ...]:
    """The claims about answers that real questions are asked, too, in the micro-world's words."""
    sets = {"both": f"{_DATA}; right: the {ANSWERED}"}
    two = {"two_hop": f"{_DATA}; of these the questions of two hops; right: the {ANSWERED}"}
    told = (*declared.answers(FAMILY, sets), *declared.more(FAMILY, sets | two, "two_hop"))
    return tuple(claim for claim in told if claim.key.endswith(".both") or claim.key.endswith("evidence_reads_no_evidence.two_hop"))


CLAIMS = (
    _claim(
        f"{FAMILY}.recall_above_all.both", place="1", rule=("difference >= 0.1",), tested=True, metric=_METRIC,
        sentence="the union of four coarse heads' votes holds more of the evidence than as many passages by all heads' shares",
    ),
    _claim(
        f"{FAMILY}.recall_above_random.both", place="1", rule=("difference > 0",), tested=True, metric=_METRIC,
        sentence="the union of four coarse heads' votes holds more of the evidence than the union of random heads' votes",
        controls="999 layer-matched draws of four heads",
    ),
    _claim(
        f"{FAMILY}.union_as_good_as_sum.two_hop", place="2", rule=("difference >= 0",), metric=_METRIC,
        sentence="where two passages are needed, the union of votes keeps no less of the evidence than as many passages by the sum of shares",
    ),
    _claim(
        f"{FAMILY}.union_equals_sum.one_hop", place="2", rule=("difference.low > -0.05", "difference.high < 0.05"), metric=_METRIC,
        sentence="where one passage is needed, the union of votes and the sum of shares keep as much of the evidence",
    ),
    *_answers(),
)  # fmt: skip


def questions(composer: PassageComposer, positions: int | None, split: str, count: int, seed: int) -> tuple[list[Labelled], list[int]]:
    """`count` questions of one hop and of two that fit into the model with their answers, and the hops of each."""
    found, every = [], []
    for hops in (1, 2):
        number, misses, mine = 0, 0, 0
        while mine < count and misses < MISSES:
            rng = np.random.default_rng([seed, 31, hops, number])
            example = make_example("passages", split, rng, n=PASSAGES, hops=hops)
            number, ranking, turn = number + 1, from_microworld(example), example.turns[-1]
            tokens = len(composer.passages(ranking.passages).ids) + len(composer.query(ranking.query).ids) + LIMIT
            if positions is not None and tokens > positions:
                misses += 1
                continue
            mine, misses = mine + 1, 0
            found.append(Labelled(ranking, (turn.answer_text + turn.close,)))
            every.append(hops)
    if len(set(every)) < 2:
        raise NotTestable(f"needs a model that reads {PASSAGES} passages of the micro-world; this one has {positions} positions")
    return found, every


def find_stages(sets: Sets, training: Sequence[Labelled]) -> Stages:
    """Heads of both stages from the same questions."""
    counts, examples = Counts(m1=1), [question.ranking for question in training]
    table = sets.measured("training", examples)
    scores, coarse = coarse_heads(table, counts)
    second = sets.measured("second-stage", fine_examples(examples, table, coarse, counts))
    return Stages(counts, scores, coarse, evidence_scores(second).top(counts.fine))


def measure(bench: Bench) -> Measured:
    """All claims of the family."""
    count = bench.pick(48, 4)
    sets = Sets(bench, Sizes(count, 0, count, PASSAGES, 0))
    draw = partial(questions, sets.composer, sets.model.positions, count=count, seed=bench.seed)
    stages = find_stages(sets, draw(split="selection")[0])
    asked, hops = draw(split="test")
    table = sets.measured("test", [question.ranking for question in asked])
    rows, p = recall_rows(table, stages, {}, seed=7)
    found = {f"{name}.both": one for name, one in recall_findings(rows, p).items() if name != "union_as_good_as_sum"}
    for number, name in ((1, "union_equals_sum.one_hop"), (2, "union_as_good_as_sum.two_hop")):
        mine = np.array(hops) == number
        found[name] = above({who: row[mine] for who, row in rows.items()}, UNION, SUM)
    every = [Asked(question, shares, place) for place, (question, shares) in enumerate(zip(asked, shares_of(table), strict=True))]
    asker = Asker(sets.model, sets.composer, stages, LIMIT)
    answers, told = ask_all(bench, "world", asker, every, sets.describe([question.ranking for question in asked]), exact_match)
    found |= {f"{name}.{'two_hop' if name == 'evidence_reads_no_evidence' else 'both'}": one for name, one in answers.items()}
    details: dict[str, Any] = {
        "coarse heads": [str(h) for h in stages.coarse], "fine heads": [str(h) for h in stages.fine], "draws": DRAWS, "questions": len(asked),
        "evidence": {who: interval(row) for who, row in rows.items()} | {"recall and passages kept by heads and votes": grid(table, stages)},
        "answers": told,
    }  # fmt: skip
    return Measured(_declared(found), details)


def _declared(found: dict[str, Finding]) -> dict[str, Finding]:
    return {claim.key: found[claim.key.removeprefix(f"{FAMILY}.")] for claim in CLAIMS}


EXPERIMENTS = (
    Experiment(
        "cafe-world", "Evidence and answers over the micro-world's passages, with one hop and with two", CLAIMS, "headwise_lab.claims.cafe:measure",
        Minutes(lab=1.5, real=None, quick_lab=0.5),
    ),
)  # fmt: skip
