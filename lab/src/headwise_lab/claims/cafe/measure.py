"""Evidence and answers over the micro-world's passages: heads of both stages are found on `selection`, all else is measured on `test`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from headwise.claims.cafe.answers import Asked, Asker
from headwise.claims.cafe.evidence import DRAWS, SUM, UNION, above, grid, recall_findings, recall_rows
from headwise.claims.cafe.measure import ask_all
from headwise.claims.cafe.stages import Counts, Stages, coarse_heads, fine_examples, shares_of
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.passage_sets import Labelled, Sets, Sizes
from headwise.methods.cafe.evidence import evidence_scores
from headwise.prompts.passages import PassageComposer
from headwise.stats.metrics import exact_match
from headwise_lab.claims.cafe import CLAIMS, FAMILY
from headwise_lab.microworld.registry import make_example
from headwise_lab.ranking import from_microworld

LIMIT = 16  # tokens of an answer
MISSES = 200  # draws in a row that do not fit, after which drawing ends
PASSAGES = 8


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
