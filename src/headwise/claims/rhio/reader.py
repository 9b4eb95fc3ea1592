"""A small reader of other models' answers: which sentences the documents support, by the attention of its retrieval heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headwise.claims.claim import Finding, Number
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.evaluation.head_reader import ON_EVIDENCE, ReaderOptions, describe_reader, read_answers
from headwise.heads.errors import NoSuccessfulRunError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import drawn, read_grounded
from headwise.prompts.grounded_prompts import GroundedComposer

TOP = 8
Rows = Sequence[Mapping[str, Any]]


def measure(bench: Bench) -> Measured:
    """Heads from needles, then all judged answers in one pass each."""
    records = drawn(read_grounded(bench.folder("expertqa-rand-test") / "rand_test.jsonl.gz", "auto"), bench.pick(219, 8), bench.seed)
    options, model = ReaderOptions(controls=bench.pick(20, 4), seed=bench.seed), bench.model
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    try:
        heads = copy_heads(bench).top(TOP)
        cells = bench.cells("read", describe_reader(model, heads, records, composer, options))
        found = read_answers(model, heads, records, composer, options, cells, bench.report)
    except NoSuccessfulRunError as why:
        raise NotTestable(str(why)) from why
    rows = found.rows()
    told = {"rows": rows, "dropped": dict(found.dropped), "heads": [str(head) for head in heads]}
    return Measured(findings([row for row in rows if row["judged"] == ON_EVIDENCE] or rows), told)


def findings(rows: Rows) -> dict[str, Finding]:
    """Of the rows of one kind of sentences."""
    by = {(row["score"], row["heads"]): row for row in rows}
    if any(row["auc"] is None for row in rows):
        none = Finding.none("the answers hold sentences of one kind only")
        return {f"reader.smollm2.{name}": none for name in ("above_random", "above_words", "attention")}
    numbers = {score: _beside(by, score) for score in ("copying", "attention")}
    words = by["lexical overlap", ""]
    above = numbers["copying"] | {"words": _ends(words), "low_above_words": by["copying", "chosen"]["low"] - words["auc"]}
    made = {"above_random": numbers["copying"], "above_words": above, "attention": numbers["attention"]}
    return {f"reader.smollm2.{name}": Finding(each) for name, each in made.items()}


def _beside(by: Mapping[tuple[str, str], Mapping[str, Any]], score: str) -> dict[str, Number]:
    chosen, random = by[score, "chosen"], by[score, "random"]
    counts = {name: float(chosen[name]) for name in ("supported", "unsupported")}
    return {"auc": _ends(chosen), "random": _ends(random), "above_random": chosen["auc"] - random["high"], **counts}


def _ends(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["auc"], row["low"], row["high"]
