"""One run over labelled queries that all query scores can be computed from: what every head pays to every passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.maths.columns import pool_passages
from headwise.models.model import Model
from headwise.prompts.passages import PassageComposer, RankingExample
from headwise.runtime.passages import PassageCache, Scoring, scorable_heads

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PassageTable:
    """Values of all heads for all passages of E examples, in the examples' own order of passages.

    Where an example has fewer than P passages, values are NaN.

    Attributes:
        raw: [E, L, H, P] float32, mean attention of the query's rows, pooled as `Scoring.normalize` says; NaN in layers that are not scored.
        calibrated: [E, L, H, P] float32, the same minus that of the null query, trimmed as `Scoring.trim` says.
        gold: [E, P], True for gold passages.
        lengths: [E, P], tokens of each passage, 0 = no passage.
        skipped: Examples without a gold passage, or with nothing else; they are not among the E.
        scoring: How attention became one value per passage.
        seed: Of the order in which the passages were shown; None: as given.
        layers_left_out: Those that do not see the whole text.
    """

    raw: Floats
    calibrated: Floats
    gold: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    skipped: int
    scoring: Scoring
    seed: int | None
    layers_left_out: tuple[int, ...]

    @property
    def present(self) -> NDArray[np.bool_]:
        """[E, P] where there is a passage."""
        return self.lengths > 0


def measure_passages(
    hf: Any,
    model: Model,
    composer: PassageComposer,
    examples: Sequence[RankingExample],
    scoring: Scoring | None = None,
    seed: int | None = 0,
    report: Report = silent,
) -> PassageTable:
    """Two short passes (query, null query) per example behind one over its passages.

    Args:
        hf: The transformers model.
        model: The same model, as a `Model`.
        composer: Words around passages and query.
        examples: Queries with passages, of which some are gold; at least one must have a gold passage and another one.
        scoring: How attention becomes one value per passage; None: `Scoring()`.
        seed: The passages of every example are put into a random order, so that no head scores by place; None keeps the given one.
        report: `report(done, total, remark)` in examples.

    Returns:
        The values of all heads that see the whole text, in the examples' own order of passages.

    Raises:
        HeadwiseError: No example can be used, or no layer of the model sees the whole text.
        PromptError: The passages of an example do not fit the model.
    """
    scoring = scoring or Scoring()
    usable = [example for example in examples if 0 < len(example.gold) < len(example.passages)]
    if not usable:
        raise HeadwiseError(f"none of {len(examples)} queries has both a gold passage and another one; heads cannot be scored")
    heads = scorable_heads(model)
    most = max(len(example.passages) for example in usable)
    shape = (len(usable), *model.heads.shape, most)
    raw, calibrated = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    gold, lengths = np.zeros((len(usable), most), bool), np.zeros((len(usable), most), np.int64)
    for i, example in enumerate(usable):
        report(i, len(usable), f"{len(example.passages)} passages")
        order = _order(len(example.passages), seed, i)
        prompt = composer.passages([example.passages[j] for j in order])
        spans = [tuple(prompt.span(f"passage/{place}")) for place in range(1, len(order) + 1)]
        found = _values(PassageCache(hf, prompt.ids, heads), composer, example.query, spans, scoring)
        for layer, values in found.items():
            raw[i, layer][:, order], calibrated[i, layer][:, order] = values.cpu().numpy()
        gold[i, list(example.gold)] = True
        lengths[i, order] = [stop - start for start, stop in spans]
    report(len(usable), len(usable), "")
    left_out = tuple(sorted(set(range(model.heads.shape[0])) - set(model.heads.full_layers)))
    return PassageTable(raw, calibrated, gold, lengths, len(examples) - len(usable), scoring, seed, left_out)


def _values(
    cache: PassageCache, composer: PassageComposer, query: str, spans: Sequence[tuple[int, ...]], scoring: Scoring
) -> dict[int, Tensor]:
    """Layer -> [2, H, P]: raw and calibrated. The difference is taken token by token while the layer is at hand, then only sums are kept."""
    ranges = [(start, stop) for start, stop in spans]

    def reduce(columns: Tensor) -> Tensor:
        asked, empty = columns
        trimmed = pool_passages(asked - empty, ranges, scoring.trim, scoring.normalize, scoring.strict)
        return torch.stack([pool_passages(asked, ranges, None, scoring.normalize), trimmed])

    return cache.columns(scoring.suffixes(composer, (query, scoring.null_query)), reduce)


def _order(count: int, seed: int | None, number: int) -> list[int]:
    if seed is None:
        return list(range(count))
    return [int(i) for i in np.random.default_rng([seed, 21, number]).permutation(count)]
