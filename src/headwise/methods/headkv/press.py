"""HeadKV (Fu et al. 2024, arXiv:2410.19258): SnapKV's choice of tokens, with room by how much each head retrieves, over all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from headwise.caches.allocation import Allocation, ByHead
from headwise.caches.kept_layer import Keep, View
from headwise.caches.press import WindowPress
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores
from headwise.maths.select import protected
from headwise.methods.headkv.formula import query_head_counts

PRESETS = ("grouped", "released")
RELEASED = {"sinks": 0, "kernel": 7}


@dataclass(frozen=True, kw_only=True)
class HeadKV(WindowPress):
    """Section 3.2 of the paper: every head gets budget x (1 - 1 / beta), and the rest of all heads is shared out by their scores.

    Two presets; docs/cache.md has a table of their differences. `grouped` is a variant of ours: budgets are those of KV heads, whose score is
    the mean of their query heads', and query heads of a KV head choose together. `released` is the form of the paper's released code: budgets
    are those of query heads, each chooses for itself, scores are smoothed by their maximum over 7 neighbours, and no first tokens are kept for
    sure. Where query heads share a KV head (GQA) that head holds what any of them chose, and the others see it too; the released code holds a
    copy of keys and values for every query head instead. So with `released` the budget is one per query head, and a KV head may hold more.

    Attributes:
        heads: Scores of query heads; the paper uses its retrieval-reasoning scores, any kind of head file will do.
        beta: At least 1; 1 / beta of the budget goes by score (the paper tries 1.005 to 10).
        preset: `grouped` or `released`; the latter decides `sinks` (0) and `kernel` (7).
    """

    found_by: ClassVar[str] = "semantic"  # the detector whose head file it takes by default

    heads: HeadScores = field(repr=False)
    beta: float = 1.2
    preset: str = "grouped"
    allocation: Allocation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise HeadwiseError(f"unknown preset {self.preset!r} of headkv; use {' or '.join(PRESETS)}")
        object.__setattr__(self, "allocation", ByHead(self.heads, self.beta))
        if self.preset == "released":
            for name, value in RELEASED.items():
                if getattr(self, name) not in (value, type(self).__dataclass_fields__[name].default):
                    raise HeadwiseError(
                        f"the released form of headkv has {name} {value}; leave {name} out, or use the preset grouped"
                    )
                object.__setattr__(self, name, value)
        super().__post_init__()

    def smoothed(self, scores: Tensor) -> Tensor:
        """Scores [..., S] over their neighbours: the mean (`grouped`), or the maximum (`released`)."""
        if self.preset != "released":
            return super().smoothed(scores)
        flat = scores.flatten(0, -2)[:, None]
        return max_pool1d(flat, self.kernel, stride=1, padding=self.kernel // 2)[:, 0].view(scores.shape)

    def kept(self, view: View) -> Sequence[Keep]:
        """The best positions of each head; a prompt no longer than the budget is kept whole.

        Args:
            view: The layer.

        Returns:
            Per group of KV heads with equally many positions, what they keep; with `released` the union over each KV head's query
            heads.

        Raises:
            HeadwiseError: Scores that are not finite, or head scores that cannot divide a budget.
        """
        if self.preset != "released":
            return super().kept(view)
        length, kv_heads, real = view.keys.shape[2], view.model.heads.kv_heads, view.positions >= 0
        budget = self.positions_for(int(real.sum(dim=1).max()))
        if budget >= length:
            return [Keep()]
        layers = view.model.heads.full_layers
        counts = query_head_counts(self.heads.values[layers], budget - self.window, self.beta)[layers.index(view.layer)]
        scores = self.head_scores(view, None)
        if not torch.isfinite(scores).all():
            raise HeadwiseError(f"layer {view.layer} gave scores that are no numbers; the model's attention is broken there")
        fixed = protected(view.positions, 0, self.window)
        marked = scores.masked_fill(fixed[:, None], torch.inf).masked_fill(~real[:, None], -torch.inf)
        # Neighbours share their maximum, so ties are common: the earlier position wins, on every device.
        ranks = marked.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        most = torch.from_numpy(counts + self.window).to(ranks.device)
        chosen = (ranks < most[None, :, None]) & real[:, None]
        held = chosen.view(len(chosen), kv_heads, -1, length).any(dim=2)
        return _keeps(held)


def _keeps(held: Tensor) -> list[Keep]:
    """What KV heads keep, from a mask [B, G, S]; heads with equally many positions together."""
    sizes = held.sum(dim=2).amax(dim=0).tolist()
    places = torch.arange(held.shape[2], device=held.device).expand_as(held).masked_fill(~held, -1)
    ascending = places.sort(dim=2).values  # -1 first
    return [
        Keep(
            tuple(int(head) for head in np.flatnonzero(np.array(sizes) == size)), ascending[:, [s == size for s in sizes], -size:]
        )
        for size in sorted(set(sizes))
    ]
