"""Compression by choosing tokens: a scorer says which positions matter, an allocation how many each head keeps, and the cache holds exactly those.

A press is used like kvpress's: `with SnapKV(budget=256)(model) as cache: ...`, the same as `headwise.compress(model, SnapKV(budget=256))`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headwise.caches.allocation import Allocation, Uniform
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import Keep, View
from headwise.heads.errors import HeadwiseError
from headwise.maths.importance import group_mean, pooled, window_attention
from headwise.maths.select import best_places, protected
from headwise.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Press(ABC):
    """Base of all presses: subclasses give `scores`.

    Attributes:
        budget: Positions per KV head on average, sinks and window included; or give
        compression_ratio: Share of the prompt that goes, in [0, 1).
        window: Newest positions that are kept in any case, at least 1.
        sinks: Oldest positions that are kept in any case.
        allocation: How the budget is shared out.

    Raises:
        HeadwiseError: Both or neither of budget and ratio, or numbers out of range.
    """

    budget: int | None = None
    compression_ratio: float | None = None
    window: int = 8
    sinks: int = 4
    allocation: Allocation = field(default_factory=Uniform)
    prefill: str = field(default="dense", init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.compression_ratio is None):
            raise HeadwiseError(
                "give either budget (positions per KV head) or compression_ratio (share of the prompt that is dropped)"
            )
        if self.window < 1 or self.sinks < 0:
            raise HeadwiseError(f"window must be at least 1 and sinks at least 0; got {self.window} and {self.sinks}")
        if self.budget is not None and (isinstance(self.budget, bool) or not isinstance(self.budget, int)):
            raise HeadwiseError(f"the budget must be a whole number of positions; got {self.budget!r}")
        if self.budget is not None and self.budget < self.least:
            raise HeadwiseError(
                f"a budget of {self.budget} does not hold the {self.sinks} first and the {self.window} last positions; use {self.least} or more"
            )
        if self.compression_ratio is not None and not 0 <= self.compression_ratio < 1:
            raise HeadwiseError(f"the compression ratio must lie in [0, 1); got {self.compression_ratio!r}")

    @property
    def least(self) -> int:
        """Positions that are kept in any case."""
        return self.window + self.sinks

    def __call__(self, model: Any) -> AbstractContextManager[KeptCache]:
        """The `compress` block of this press."""
        return compress(model, self)

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` if the press does not fit the model."""
        self.allocation.check(model)

    def streams(self, layer: int, model: Model) -> None:
        """None: presses have no fixed windows."""
        return None

    @abstractmethod
    def scores(self, view: View) -> Tensor:
        """[B, n, S] float32, higher is kept; n KV heads, or 1 for all. Values at padding and at protected positions do not matter."""

    def positions_for(self, length: int) -> int:
        """Positions per KV head on average for a prompt of `length` tokens."""
        if self.budget is not None:
            return min(self.budget, length)
        return min(max(round(length * (1 - (self.compression_ratio or 0))), self.least), length)

    def kept(self, view: View) -> Sequence[Keep]:
        """The best positions of each head; a prompt no longer than the budget is kept whole.

        Args:
            view: All that the layer holds.

        Returns:
            One entry for all heads, or one for each number of positions that the allocation gives.

        Raises:
            HeadwiseError: Scores that are not finite.
        """
        length = view.keys.shape[2]
        real = view.positions >= 0
        budget = self.positions_for(int(real.sum(dim=1).max()))  # a share of the longest row, without its padding
        if budget >= length:
            return [Keep()]
        fixed = protected(view.positions, self.sinks, self.window)
        scores = self.scores(view)
        if not torch.isfinite(scores).all():
            raise HeadwiseError(f"layer {view.layer} gave scores that are no numbers; the model's attention is broken there")
        shared = scores.mean(dim=0).masked_fill(fixed.all(dim=0), torch.inf)
        counts = self.allocation.counts(view.layer, shared, budget, min(self.least, length), length, view.model)
        rows = real.expand(len(scores), -1), fixed.expand(len(scores), -1)
        if len(set(counts)) == 1:
            return [Keep(None, best_places(scores, rows[1], rows[0], counts[0]))]
        scores = scores.expand(-1, view.model.heads.kv_heads, -1)
        heads = {count: [head for head, own in enumerate(counts) if own == count] for count in sorted(set(counts))}
        return [Keep(own, best_places(scores[:, own], rows[1], rows[0], count)) for count, own in heads.items()]


@dataclass(frozen=True, kw_only=True)
class WindowPress(Press):
    """Scores by the attention of the prompt's last queries (SnapKV, Li et al. 2024, section 4).

    It is averaged over neighbours and over the query heads of each KV head.

    Attributes:
        queries: How many of the last tokens look back, at least 1 (None: `window`).
        kernel: Odd width of the moving average; 1: none.

    Raises:
        HeadwiseError: An even kernel, fewer than 1 query, or what `Press` refuses.
    """

    queries: int | None = None
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise HeadwiseError(f"the kernel must be an odd number of positions; got {self.kernel}")
        if self.queries is not None and self.queries < 1:
            raise HeadwiseError(f"queries must be at least 1; got {self.queries}")

    def scores(self, view: View) -> Tensor:
        """[B, KV heads, S]."""
        return group_mean(self.head_scores(view, None), view.model.heads.kv_heads)

    def head_scores(self, view: View, heads: Sequence[int] | None) -> Tensor:
        """Scores before the mean over the query heads of a KV head.

        Args:
            view: All that the layer holds.
            heads: n query heads in ascending order; None: all.

        Returns:
            [B, n, S] float32, at least 0. Positions of the window itself have 0, and do not spread to their neighbours.
        """
        rows = min(self.queries or self.window, view.query.shape[2])
        positions = view.positions if view.positions.shape[0] > 1 else None
        each = view.query.shape[1] // view.keys.shape[1]
        groups = [None] if heads is None else sorted({head // each for head in heads})
        found = []
        for group in groups:  # query heads of one KV head at a time, so that keys are neither repeated nor copied
            own = slice(None) if group is None else [head for head in heads or () if head // each == group]
            keys = view.keys if group is None else view.keys[:, group : group + 1]
            sinks = None if view.sinks is None else view.sinks[own]
            found.append(
                window_attention(
                    view.query[:, own], keys, rows, scaling=view.scaling, positions=positions, softcap=view.softcap, sinks=sinks
                )
            )
        scores = torch.cat(found, dim=1)
        scores[..., -self.window :] = 0
        return self.smoothed(scores)

    def smoothed(self, scores: Tensor) -> Tensor:
        """Scores [..., S] averaged over `kernel` neighbours; the step of `head_scores` that a subclass may replace."""
        return pooled(scores, self.kernel)
