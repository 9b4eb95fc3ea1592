"""Registered: half of the KV heads (DuoAttention) or of the layers (ZigzagAttention) whole, on needles, beside the full cache."""

from __future__ import annotations

from functools import partial
from typing import Any

from headwise.caches.controls import Full
from headwise.claims.cache_runs import Row, Runs, Tables, Test, Values, compared, needed, smallest, table_rows
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.evaluation.compression import Candidate
from headwise.evaluation.contexts import Context
from headwise.evaluation.tasks import needle_contexts
from headwise.heads import HeadScores
from headwise.methods.duo.options import Gates
from headwise.methods.duo.press import DuoAttention
from headwise.methods.zigzag.press import ZigzagAttention

KEEP = 0.5  # share of KV heads, or of layers, that keep everything
SEEN: dict[str, Any] = {"sinks": 16, "recent": 64}  # of the others; gates are found with the same
FOUND_AT = (300, 500)  # tokens of a text
GATE = 0.8  # share of the questions that the full cache must answer
METHODS = {"cache.duo_two_points": "duoattention", "cache.zigzag_two_points": "zigzag"}


def gates(runs: Runs) -> HeadScores:
    """As they are registered; for lab models fewer steps, which is enough for their few heads."""
    bench = runs.bench
    options = Gates(lengths=FOUND_AT, steps=bench.pick(200 if bench.real else 60, 10), seed=bench.seed, **SEEN)
    with needed("texts with pass-keys"):
        texts = options.texts(runs.model)
    return runs.gates(texts, options)


def drawn(runs: Runs, length: int, count: int, draw: int) -> list[Context]:
    """Contexts of one draw, test split."""
    return needle_contexts(runs.model, "needle", length, count, seed=runs.bench.seed * 1000 + draw)


def measure(bench: Bench) -> Measured:
    """See the module."""
    runs = Runs(bench)
    found = gates(runs)
    candidates = [
        Candidate("full", None, Full()), Candidate("duoattention", None, DuoAttention(found, KEEP, **SEEN)),
        Candidate("zigzag", None, ZigzagAttention(found, KEEP, **SEEN)),
    ]  # fmt: skip
    normal, long = (2048, 4096) if bench.real else (512, 768)
    wanted = bench.pick(((normal, 4), (long, 2)), ((512, 1),))
    rows: list[Row] = []
    lengths: list[int] = []
    for length, count in wanted:
        if lengths and runs.model.positions is not None and length > runs.model.positions:
            continue
        rows += table_rows(runs, "needle", length, partial(drawn, runs, length, count), lambda _: candidates)
        lengths.append(length)
    tables = Tables(rows)
    counted = [length for length in lengths if length == lengths[0] or tables.full("needle", length)[0] >= GATE]
    findings = {}
    for key, method in METHODS.items():
        worst = smallest([_lost(tables, method, length, place) for length in counted for place in ("inside", "outside")])
        findings[key] = Finding({"full": tables.full("needle", lengths[0]), "difference": worst.ends}, note=f"lengths that count: {counted}")
    details = {"table": tables.rows(), "whole KV heads": DuoAttention(found, KEEP, **SEEN).describe(runs.model)["retrieval_heads"]}
    return Measured(findings, details | {"whole layers": ZigzagAttention(found, KEEP, **SEEN).describe(runs.model)["retrieval_layers"]})


def _lost(tables: Tables, method: str, length: int, place: str) -> Test:
    def values(who: str) -> Values:
        return tables.values("needle", length, place, who, None)

    return compared(values(method), values("full"))
