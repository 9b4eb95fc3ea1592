"""Observing: row statistics of the newest query rows in every layer, while the model runs as usual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call, KeyPart
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import RowStats, row_statistics


class Observation:
    """Look: row statistics of the latest forward pass, layer by layer. `observe` makes it.

    Args:
        layers: Of the model, L.
        rows: As the attribute.
        spans: As the attribute.
        argmax_only: Leave log-sum-exp and mass out.

    Attributes:
        rows: How many of the newest query rows of each pass (None = all); may be changed between passes.
        spans: Key ranges [start, stop) whose attention mass is wanted; may be changed between passes.
        paused: True stops the counting for a while.
        by_layer: Layer -> its statistics, [B, H, R] each (mass: [B, H, R, N]).
    """

    def __init__(self, layers: int, rows: int | None, spans: Sequence[tuple[int, int]], argmax_only: bool) -> None:
        self._layers, self.rows, self.spans, self._argmax_only = layers, rows, tuple(spans), argmax_only
        self.by_layer: dict[int, RowStats] = {}
        self.paused = False

    def look(self, call: Call) -> None:
        """Compute and keep the statistics of one layer."""
        if self.paused:
            return
        total = call.query.shape[2]
        rows = total if self.rows is None else min(self.rows, total)
        parts = call.source.parts(rows, call.start + total)
        if len(parts) == 1 and parts[0].heads is None:
            self.by_layer[call.layer] = self._of_part(call, rows, parts[0], slice(None))
            return
        each = call.query.shape[1] // sum(part.keys[0].shape[1] for part in parts)
        found = [_query_heads(part, each) for part in parts]
        stats = [self._of_part(call, rows, part, heads) for part, heads in zip(parts, found, strict=True)]
        order = torch.cat(found).argsort()
        joined = (torch.cat([getattr(one, name) for one in stats], dim=1)[:, order] for name in ("argmax", "lse", "mass"))
        self.by_layer[call.layer] = RowStats(*joined)

    def _of_part(self, call: Call, rows: int, part: KeyPart, heads: Tensor | slice) -> RowStats:
        """Statistics of some query heads, all of which attend to this part."""
        query = call.query[:, heads, -rows:]
        each = query.shape[1] // part.keys[0].shape[1]
        mask, positions = _per_head(part.mask, each), _per_head(part.positions, each)
        stats = row_statistics(
            query,
            part.keys,
            scaling=call.scaling,
            mask=mask,
            spans=[(start - part.first, stop - part.first) for start, stop in self.spans] if part.first else self.spans,
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks[heads],
            argmax_only=self._argmax_only,
            positions=positions,
        )
        if part.first:
            stats = RowStats(torch.where(stats.argmax < 0, -1, stats.argmax + part.first), stats.lse, stats.mass)
        return stats

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
        found = [getattr(self.by_layer[i], name) if i in self.by_layer else empty for i in range(self._layers)]
        return torch.stack([tensor.to(like.device) for tensor in found])  # layers may lie on several devices


def _query_heads(part: KeyPart, each: int) -> Tensor:
    """Query heads of a part, `each` per KV head."""
    device = part.keys[0].device
    own = torch.arange(part.keys[0].shape[1], device=device) if part.heads is None else part.heads
    return (own[:, None] * each + torch.arange(each, device=device)).flatten()


def _per_head(tensor: Tensor | None, each: int) -> Tensor | None:
    """Something per KV head [B, n, ...], for its query heads; what all heads share stays as it is."""
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor.repeat_interleave(each, dim=1)


@contextmanager
def observe(
    model: Any, rows: int | None = None, spans: Sequence[tuple[int, int]] = (), argmax_only: bool = False
) -> Iterator[Observation]:
    """Collect row statistics inside the block. Each pass replaces the statistics of the one before.

    Works over any cache. Over a compressed one the statistics are those of the positions that each head holds; positions are always those
    of the text. Gradients reach log-sum-exp and mass unless they are switched off.

    Args:
        model: A `Model`, or a transformers model.
        rows: How many of the newest query rows of each forward pass (None = all).
        spans: Key ranges [start, stop) whose attention mass is wanted.
        argmax_only: Leave log-sum-exp and mass out (NaN), which is cheaper.

    Yields:
        The observation. Its `rows`, `spans` and `paused` may be changed between passes.

    Raises:
        HeadwiseError: In a pass over a compressed cache whose rows have padding: their positions do not count it.
    """
    with attached(model) as plan:
        observation = Observation(plan.model.heads.shape[0], rows, spans, argmax_only)
        with plan.running(observation):
            yield observation
