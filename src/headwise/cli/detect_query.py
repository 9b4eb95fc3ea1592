"""`headwise detect --score query`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores

TEXTS, PASSAGES = 64, 6


def query_heads(
    model: str | None,
    device: str,
    dtype: str,
    revision: str | None,
    data: Path | None,
    rule: str | None,
    span: str,
    layout: str,
    chat: bool,
    seed: int,
    json: bool,
) -> HeadScores:
    """Query scores of all heads; without `data` on needle questions over passages of novels."""
    from headwise.methods.query.formula import RULES
    from headwise.methods.query.run import query_scores
    from headwise.models.provenance import describe_model
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.passages import PassageComposer
    from headwise.prompts.ranking_data import needle_examples, read_ranking_examples
    from headwise.runtime.passage_table import measure_passages
    from headwise.runtime.passages import Scoring

    rule, scoring = rule or "calibrated_mass", Scoring(span)
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r}; use {', '.join(RULES)}")
    examples = (
        needle_examples(TEXTS, PASSAGES, seed) if data is None else read_ranking_examples(data)
    )
    loaded = o.load(model, device, dtype, revision)
    composer = PassageComposer(PieceEncoder(loaded.tokenizer), layout, chat)
    with progress("detecting", hidden=json) as report:
        table = measure_passages(loaded.hf, loaded, composer, examples, scoring, seed, report)
    source = {"data": "bundled needles among passages of novels" if data is None else data.name, "layout": layout, "chat": chat}
    return query_scores(table, rule, provenance=describe_model(loaded) | source)
