"""How a budget is divided among layers and KV heads. Every allocation works with every scorer (`headwise.caches.press`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores, HeadSet
from headwise.maths.budgets import adaptive_counts, error_shares, fitted, head_shares, pyramid
from headwise.models.model import Model


class Allocation(Protocol):
    """Counts of positions per KV head of one layer."""

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` if it does not fit the model."""

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """One count per KV head, or a single one for all.

        Args:
            layer: Decoder layer; one with full attention.
            scores: [n, S] of this layer (n = 1: shared by all heads), inf for positions that are kept anyway.
            budget: Mean over all heads of all compressed layers.
            least: Lower limit of every count.
            most: Upper limit of every count.
            model: Whose layer it is.

        Returns:
            Positions to keep, `least` to `most` each: one number per KV head, or one number that holds for all of them.
        """


@dataclass(frozen=True)
class Uniform:
    """Every head of every layer the same."""

    def check(self, model: Model) -> None:
        """Fits all models."""

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """The budget, at most `most`, for all heads; see `Allocation.counts`."""
        return [min(budget, most)]


@dataclass(frozen=True)
class Pyramid:
    """Less from layer to layer (PyramidKV, Cai et al. 2024, section 3.2; see `maths.budgets.pyramid`).

    Attributes:
        beta: The last layer gets the mean budget / beta; at least 1, where all layers get the same.
    """

    beta: float = 20

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` for a beta below 1."""
        pyramid(1, 1, self.beta)

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """One count for all heads of the layer, by its place among the layers with full attention; see `Allocation.counts`."""
        layers = model.heads.full_layers
        return [fitted(pyramid(len(layers), budget, self.beta), budget * len(layers), least, most)[layers.index(layer)]]


@dataclass(frozen=True)
class ByLayer:
    """By the error that a small cache causes in each layer (CompressKV, Lin et al. 2025, arXiv:2508.02401, algorithm 1).

    Attributes:
        errors: One per layer of the model, finite and not negative; those of layers without full attention are not used.
        least: Floor of a layer's share in positions per KV head; the budget itself where that is smaller.
        ceiling: No layer gets more than so many mean budgets.
    """

    errors: tuple[float, ...]
    least: int = 32
    ceiling: int = 3

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` for errors of a model with another number of layers, and for negative, infinite or all-zero ones."""
        if len(self.errors) != model.heads.shape[0]:
            raise HeadwiseError(f"{len(self.errors)} layer errors for a model of {model.heads.shape[0]} layers")
        error_shares([self.errors[layer] for layer in model.heads.full_layers], 1, 0)

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """One count for all heads of the layer, by its share of all errors; see `Allocation.counts`."""
        layers = model.heads.full_layers
        floor = max(least, min(self.least, budget))
        shares = error_shares([self.errors[i] for i in layers], budget, floor)
        return [fitted(shares, budget * len(layers), floor, min(most, self.ceiling * budget))[layers.index(layer)]]


@dataclass(frozen=True)
class ByHead:
    """By the scores of heads, all layers together (HeadKV, Fu et al. 2024, arXiv:2410.19258, section 3.2). A KV head has the mean of its query heads.

    Attributes:
        scores: Of all query heads [L, H], not negative; heads without a score count as 0.
        beta: 1 / beta of the budget goes by score, the rest evenly; at least 1.
    """

    scores: HeadScores
    beta: float = 1.2

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` for scores of a model of another shape, negative or all-zero scores, and a beta below 1."""
        self._shares(model, 1)

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """One count per KV head; a head that scores high takes room from every layer. See `Allocation.counts`."""
        shares, layers = self._shares(model, budget), model.heads.full_layers
        flat = fitted([share for row in shares for share in row], budget * len(layers) * model.heads.kv_heads, least, most)
        at = layers.index(layer) * model.heads.kv_heads
        return flat[at : at + model.heads.kv_heads]

    def _shares(self, model: Model, budget: int) -> Sequence[Sequence[float]]:
        HeadSet((), self.scores.shape).check_fits(model.heads.shape, model.name, "these head scores")
        values = np.nan_to_num(self.scores.values[model.heads.full_layers])
        return head_shares(values.reshape(len(values), model.heads.kv_heads, -1).mean(axis=2).tolist(), budget, self.beta)


@dataclass(frozen=True)
class Adaptive:
    """By where the prompt's scores are high, inside each layer (AdaKV, Feng et al. 2024, algorithm 1).

    Rows of a batch share their counts: those of their mean scores.

    Attributes:
        floor: Share of the budget in [0, 1] that every head has for sure.
    """

    floor: float = 0.2

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` for a floor outside of [0, 1]."""
        if not 0 <= self.floor <= 1:
            raise HeadwiseError(f"the floor of adaptive budgets must lie in [0, 1]; got {self.floor:g}")

    def counts(self, layer: int, scores: Tensor, budget: int, least: int, most: int, model: Model) -> list[int]:
        """One count per KV head; if the heads share their scores, the budget for all. See `Allocation.counts`."""
        if len(scores) == 1:
            return [min(budget, most)]
        return fitted(adaptive_counts(scores, min(budget, most), self.floor), budget * len(scores), least, most)
