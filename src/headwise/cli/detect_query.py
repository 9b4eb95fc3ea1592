"""`headwise detect --score query`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.core.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.core import HeadScores

WORLD_TEXTS, WORLD_PASSAGES = 64, 6


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
    """Query scores of all heads; without `data` on texts of the micro-world's selection split."""
    from headwise.engine.passage_table import measure_passages
    from headwise.engine.scoring import Scoring
    from headwise.evaluate.provenance import describe_model
    from headwise.maths.query import RULES
    from headwise.methods.find.query import query_scores
    from headwise.prompts import PieceEncoder
    from headwise.prompts.passages import PassageComposer
    from headwise.prompts.ranking_data import microworld_examples, read_ranking_examples

    rule, scoring = rule or "calibrated_mass", Scoring(span)
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r}; use {', '.join(RULES)}")
    examples = (
        microworld_examples(WORLD_TEXTS, "selection", seed, WORLD_PASSAGES) if data is None else read_ranking_examples(data)
    )
    loaded = o.load(model, device, dtype, revision)
    composer = PassageComposer(PieceEncoder(loaded.tokenizer), layout, chat)
    with progress("detecting", hidden=json) as report:
        table = measure_passages(loaded.model, loaded.layout, composer, examples, scoring, seed, report)
    source = {"data": "micro-world, selection split" if data is None else data.name, "layout": layout, "chat": chat}
    return query_scores(table, rule, provenance=describe_model(loaded) | source)
