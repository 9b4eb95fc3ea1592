"""Observing: row statistics of the newest query rows in every layer, while the model runs as usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention.plan import Call, attached
from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import RowStats, row_statistics


class Observation:
    """Row statistics of the latest forward pass, layer by layer."""

    def __init__(self, layers: int, rows: int | None, spans: Sequence[tuple[int, int]], argmax_only: bool) -> None:
        self._layers, self.rows, self.spans, self._argmax_only = layers, rows, tuple(spans), argmax_only
        self.by_layer: dict[int, RowStats] = {}
        self.paused = False

    def __call__(self, call: Call) -> None:
        """Tap: compute and keep the statistics of one layer."""
        if self.paused:
            return
        total = call.query.shape[2]
        rows = total if self.rows is None else min(self.rows, total)
        mask = call.visible
        self.by_layer[call.layer] = row_statistics(
            call.query[:, :, total - rows :],
            call.keys,
            scaling=call.scaling,
            mask=None if mask is None else mask[:, :, total - rows :],
            spans=self.spans,
            softcap=call.softcap,
            sinks=call.sinks,
            argmax_only=self._argmax_only,
        )

    @property
    def argmax(self) -> Tensor:
        """[L, B, H, R] int64 key position of the strongest key; -1 for layers without softmax attention."""
        return self._stack("argmax", -1)

    @property
    def lse(self) -> Tensor:
        """[L, B, H, R] float32 log-sum-exp; NaN for layers without softmax attention."""
        return self._stack("lse", torch.nan)

    @property
    def mass(self) -> Tensor:
        """[L, B, H, R, N] float32 attention mass per span; NaN for layers without softmax attention."""
        return self._stack("mass", torch.nan)

    def _stack(self, name: str, missing: float) -> Tensor:
        if not self.by_layer:
            raise HeadwiseError("nothing was observed: run the model inside the `with observe(...)` block")
        like = getattr(next(iter(self.by_layer.values())), name)
        empty = torch.full_like(like, missing)
        return torch.stack([getattr(self.by_layer[i], name) if i in self.by_layer else empty for i in range(self._layers)])


@contextmanager
def observe(
    model: Any, rows: int | None = None, spans: Sequence[tuple[int, int]] = (), argmax_only: bool = False
) -> Iterator[Observation]:
    """Collect row statistics inside the block.

    rows: how many of the newest query rows of each forward pass (None = all). spans: key ranges [start, stop) whose attention mass
    is wanted. Both may be changed on the yielded object between passes, and `paused` stops the counting for a while. Each pass
    replaces the statistics of the one before. argmax_only: leave log-sum-exp and mass out (NaN), which is cheaper.
    """
    with attached(model) as plan:
        observation = Observation(plan.model.heads.shape[0], rows, spans, argmax_only)
        plan.taps.append(observation)
        try:
            yield observation
        finally:
            plan.taps.remove(observation)
