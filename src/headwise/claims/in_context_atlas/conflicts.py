"""Conflicts of memory and passage: which answer is given as in-context or parametric heads go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.in_context_atlas.parts import NQ, Cell, ends, known_fact_heads, once, paired, parametric_heads, share
from headwise.claims.in_context_atlas.steering_sets import LRE, contradicted, relations
from headwise.evaluation.conflict import ConflictOptions, conflict_curves
from headwise.evaluation.variants import describe_scores
from headwise.heads import HeadScores, HeadwiseError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, read_knowledge
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.swaps import swap_answers

KS, FEW, MANY = (5, 16, 26), 5, 26  # of 270 heads
ANSWER, ANSWER_NQ = 4, 12  # new tokens
NQ_RECORDS, NQ_TOKENS, NQ_LEAST = 50, 220, 30
BOTH = ("passage_falls", "memory_returns")
Curves = Cell | str  # or why there are none


def measured(bench: Bench) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Findings about conflicts, and the tables behind them."""
    try:
        context, memory = known_fact_heads(bench), parametric_heads(bench)
    except NotTestable as why:
        return judge(str(why), str(why), str(why), (1, 1, 1)), {}
    model = bench.model
    cloze = KnowledgeComposer(PieceEncoder(model.tokenizer), "cloze")
    every = tuple(share(model, k) for k in KS)
    draws = bench.pick(5, 2)

    @cache  # asked only where a part is not finished yet
    def facts() -> list[KnowledgeRecord]:
        return contradicted(model, cloze, relations(bench.folder("relations-lre") / LRE), bench.seed)

    options = {"controls": draws, "seed": bench.seed, "max_new_tokens": ANSWER}
    found = {
        "context": _curves(bench, "context", context, facts, cloze, ConflictOptions(tuple(dict.fromkeys(every)), **options)),
        "memory": _curves(bench, "memory", memory, facts, cloze, ConflictOptions((every[0],), **options)),
    }
    instructed = KnowledgeComposer(PieceEncoder(model.tokenizer), "instructed")
    options |= {"scope": "answer", "max_new_tokens": ANSWER_NQ, "least": NQ_LEAST}
    many = ConflictOptions((every[-1],), **options)
    found["nq"] = _curves(bench, "context", context, partial(nq_records, bench, instructed), instructed, many, "nq")
    tables = {name: curves if isinstance(curves, str) else shares(curves) for name, curves in found.items()}
    return judge(found["context"], found["memory"], found["nq"], every), {"conflicts": tables}


def nq_records(bench: Bench, composer: KnowledgeComposer) -> list[KnowledgeRecord]:
    """Wikipedia passages whose answer was swapped, short ones in a drawn order."""
    every = read_knowledge(bench.folder("nq-open-oracle") / NQ)
    records = [one for one in swap_answers(every, bench.seed) if one.swapped is not None]
    order = [records[i] for i in np.random.default_rng([bench.seed, 86]).permutation(len(records))[: 12 * NQ_RECORDS]]
    return [one for one in order if len(composer.opened(one, swapped=True).ids) <= NQ_TOKENS][:NQ_RECORDS]


def _curves(
    bench: Bench,
    side: str,
    scores: HeadScores,
    records: Callable[[], list[KnowledgeRecord]],
    composer: KnowledgeComposer,
    options: ConflictOptions,
    name: str = "facts",
) -> Curves:
    """Counted answer -> [variant, record], and kind and K of each variant; or why the model cannot be asked."""

    def make() -> Cell:
        found = conflict_curves(bench.model, {side: scores}, records(), composer, options, report=bench.report)
        kinds = [f"{variant.kind} {variant.k}" for variant in found.variants[side]]
        return dict(found.values[side]) | {"kinds": np.array(kinds)}

    told = {"heads": describe_scores(scores), "top": list(options.top), "draws": options.controls}
    return _or_why(lambda: once(bench, f"conflict {side} {name}", make, told))


def _or_why(make: Callable[[], Cell]) -> Curves:
    try:
        return make()
    except HeadwiseError as why:  # too few usable records
        return str(why)


# ---- judging


def at(cell: Cell, counted: str, kind: str) -> np.ndarray:
    """[record] mean over the variants of a kind, such as `top 5`."""
    return np.asarray(cell[counted][cell["kinds"] == kind].mean(axis=0))


def shares(cell: Cell) -> dict[str, Any]:
    """Kind of heads -> share of answers by memory and by the passage."""
    return {
        kind: {one: round(float(at(cell, one, kind).mean()), 4) for one in ("memory", "passage")}
        for kind in dict.fromkeys(cell["kinds"].tolist())
    }


def judge(context: Curves, memory: Curves, nq: Curves, ks: Sequence[int]) -> dict[str, Finding]:
    """Findings of the curves without in-context heads, without parametric ones, and on NQ; `ks`: numbers of heads for `KS`."""
    few, many = ks[0], ks[-1]
    found = _of_curves("conflict", context, few, many) | _of_curves("conflict_nq", nq, many, many)
    if isinstance(context, str):
        found["steer.conflict.not_monotonic"] = Finding.none(context)
    else:
        curve = [float(at(context, "memory", f"top {k}").mean()) for k in ks]
        rises: dict[str, Number] = {"above_last": round(max(curve) - curve[-1], 4), "last": round(curve[-1], 4)}
        found["steer.conflict.not_monotonic"] = Finding(rises | _gate(context))
    if isinstance(memory, str):
        return found | {"steer.conflict.passage_stays": Finding.none(memory)}
    change = at(memory, "passage", f"top {few}") - at(memory, "passage", "none 0")
    return found | {"steer.conflict.passage_stays": Finding({"change": ends(change), **_gate(memory)})}


def _of_curves(family: str, cell: Curves, few: int, many: int) -> dict[str, Finding]:
    """The passage's answers fall at many heads, the remembered ones rise at few."""
    if isinstance(cell, str):
        return {f"steer.{family}.{key}": Finding.none(cell) for key in BOTH}
    drawn = at(cell, "passage", f"random {many}")
    falls = drawn - at(cell, "passage", f"top {many}")
    rises, random = at(cell, "memory", f"top {few}"), at(cell, "memory", f"random {few}")
    return {
        f"steer.{family}.passage_falls": paired(falls, random=ends(drawn), **_gate(cell)),
        f"steer.{family}.memory_returns": paired(rises - random, random=ends(random), **_gate(cell)),
    }


def _gate(cell: Cell) -> dict[str, Number]:
    return {"follows": ends(at(cell, "passage", "none 0")), "records": float(cell["memory"].shape[1])}
