"""CAFE over real passages: evidence kept by the coarse heads' votes, and answers with and without the two stages.

Coarse heads are found on two label sets of HotpotQA's training questions, fine heads on a third one, from what the coarse heads have kept.
Answers beyond the plain ones are only asked for if those pass the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from headwise.claims.cafe.answers import DELTAS, Asked, Asker, answerable, contains, right_rows
from headwise.claims.cafe.declared import REAL
from headwise.claims.cafe.evidence import DRAWS, grid, recall_findings, recall_rows
from headwise.claims.cafe.findings import answer_findings, answer_tables, passed
from headwise.claims.cafe.stages import Counts, Stages, coarse_heads, fine_examples, part, shares_of
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.passage_sets import Sets, Sizes
from headwise.methods.cafe.evidence import evidence_scores

LIMIT = 24  # tokens of an answer
NAMES = ("hotpotqa", "nq")
Said = dict[str, str]


def sizes(bench: Bench) -> Sizes:
    """Whole prompts of real models; lab models read short passages."""
    items, labels = bench.pick(60, 8), bench.pick(32, 8)
    if bench.real:
        return Sizes(items, 0, labels, 10, bench.pick(60, 20))
    return Sizes(items, 0, labels, bench.pick(8, 4), bench.pick(28, 16))


def find_stages(sets: Sets) -> Stages:
    """Coarse heads from two label sets, fine heads from what those keep of the third."""
    counts, labels = Counts(), sets.sizes.labels
    table = sets.table("hotpotqa-train")
    scores, coarse = coarse_heads(part(table, 0, 2 * labels), counts)
    examples = sets.examples("hotpotqa-train")[2 * labels :]
    if not examples:
        raise NotTestable(f"too few labelled questions fit into {sets.model.positions} positions: {3 * labels} are needed")
    usable = fine_examples(examples, part(table, 2 * labels, len(table.gold)), coarse, counts)
    return Stages(counts, scores, coarse, evidence_scores(sets.measured("second-stage", usable)).top(counts.fine))


def answered(
    bench: Bench, name: str, asker: Asker, asked: Sequence[Asked], ways: Mapping[str, Callable[[Asked], Said]], about: Mapping[str, Any]
) -> list[Said]:
    """All answers to some questions, kept question by question.

    Args:
        bench: Where they are kept.
        name: Of the set; the folders are called after it.
        asker: That answers.
        asked: The questions.
        ways: Name -> what is asked of it.
        about: All that decides the answers beside heads and ways.

    Returns:
        Condition -> answer, per question.
    """
    stages = asker.stages
    heads = {"coarse": [str(h) for h in stages.coarse], "fine": [str(h) for h in stages.fine]}
    out: list[Said] = [{} for _ in asked]
    for way, ask in ways.items():
        cells = bench.cells(f"answers-{way}-{name}", {"heads": heads, "limit": asker.limit, "deltas": DELTAS} | dict(about))
        for place, each in enumerate(asked):
            found = cells.load(str(each.number))
            if found is None:
                found = {}, [ask(each)]
                cells.save(str(each.number), *found)
            out[place] |= {str(key): str(value) for key, value in found[1][0].items()}
            bench.report(place + 1, len(asked), f"answers {way}, {name}")
    return out


def ask_all(
    bench: Bench, name: str, asker: Asker, asked: Sequence[Asked], about: Mapping[str, Any], judge: Callable[[str, str], bool]
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Findings and table of the answers to some questions; the further answers only if the plain ones pass the gate.

    Args:
        bench: See `answered`.
        name: See `answered`.
        asker: See `answered`.
        asked: See `answered`.
        about: See `answered`.
        judge: Whether an answer holds a right one.
    """
    ask = partial(answered, bench, name, asker, asked, about=about)
    said = ask({"plain": asker.plain})
    rows = right_rows(said, asked, judge)
    if passed(rows):
        said = [one | other for one, other in zip(said, ask({"staged": asker.staged, "hidden": asker.hidden}), strict=True)]
        rows = right_rows(said, asked, judge)
    return answer_findings(rows, said), {"answered": len(asked), "rows": answer_tables(rows, said, asked)}


def recall_of(sets: Sets, name: str, stages: Stages) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Findings and table of the evidence that is kept of one set's questions."""
    table = sets.table(name)
    own = evidence_scores(sets.table("nq-train")).top(stages.counts.coarse)
    rows, p = recall_rows(table, stages, {"heads found on NQ": own})
    told: dict[str, Any] = {who: interval(values) for who, values in rows.items()}
    told |= {"p of coarse heads among the draws": p, "recall and passages kept by heads and votes": grid(table, stages)}
    return recall_findings(rows, p), told


def answers_of(bench: Bench, sets: Sets, name: str, stages: Stages) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Findings and table of the answers to one set's questions."""
    shares = list(shares_of(sets.table(name)))
    asked = [Asked(question, shares[place], place) for place, question in enumerate(sets.questions(name)) if answerable(question)]
    if not asked:
        why = f"no question of {name} has its answer in the words that are left of its gold passages"
        return {}, {"answered": 0, "note": why}
    asker = Asker(sets.model, sets.composer, stages, LIMIT)
    return ask_all(bench, name, asker, asked, sets.describe(sets.examples(name)), contains)


def measure(bench: Bench) -> Measured:
    """Families `cafe` and `cafe-more` on the first questions of each set, `cafe-start` on the next ones."""
    sets = Sets(bench, sizes(bench))
    stages = find_stages(sets)
    found: dict[str, Finding] = {}
    details: dict[str, Any] = {
        "coarse heads": [str(h) for h in stages.coarse], "fine heads": [str(h) for h in stages.fine], "draws": DRAWS,
    }  # fmt: skip
    for family, each in (("cafe", sets), ("cafe-start", Sets(bench, replace(sets.sizes, first=sets.sizes.items)))):
        for name in NAMES:
            recall, table = recall_of(each, name, stages)
            found |= {f"{family}.{claim}.{name}": one for claim, one in recall.items()}
            details[f"{family}, {name}"] = {"questions": len(each.examples(name)), "evidence": table}
    for name in NAMES:
        answers, table = answers_of(bench, sets, name, stages)
        details[f"cafe, {name}"]["answers"] = table
        found |= {f"{family}.{claim}.{name}": one for family in ("cafe", "cafe-more") for claim, one in answers.items()}
    return Measured(_declared(found), details)


def _declared(found: Mapping[str, Finding]) -> dict[str, Finding]:
    """The findings of the claims that are declared; what is not there had no question to be asked."""
    missing = Finding.none("no question has its answer in the words that are left of its gold passages")
    return {claim.key: found.get(claim.key, missing) for claim in REAL}
