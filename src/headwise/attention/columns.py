"""Column sums: how much attention chosen query rows pay to every position of a prompt's first part, head by head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.heads.types import Heads
from headwise.maths.columns import attention_columns

Reduce = Callable[[Tensor], Tensor]


class ColumnSums:
    """Look: what the latest pass gave. Arguments as for `column_sums`, with the heads by layer.

    Attributes:
        heads: Layer -> the n wanted heads, ascending.
        by_layer: Layer -> `reduce` of [B, n, stop] float32.
    """

    def __init__(self, heads: dict[int, list[int]], stop: int, weights: Tensor, reduce: Reduce) -> None:
        self.heads, self._stop, self._weights, self._reduce = heads, stop, weights, reduce
        self.by_layer: dict[int, Tensor] = {}

    def look(self, call: Call) -> None:
        """One layer. Heads are taken KV group by KV group, so that keys are never repeated or copied."""
        wanted = self.heads.get(call.layer, [])
        if not wanted:
            return
        group = call.query.shape[1] // call.keys[0].shape[1]
        parts = [self._group(call, kv, [h for h in wanted if h // group == kv]) for kv in sorted({h // group for h in wanted})]
        self.by_layer[call.layer] = self._reduce(torch.cat(parts, dim=1))

    def _group(self, call: Call, kv: int, heads: list[int]) -> Tensor:
        rows = self._weights.shape[1]
        mask = call.visible
        return attention_columns(
            call.query[:, heads, -rows:],
            [keys[:, kv : kv + 1] for keys in call.keys],
            scaling=call.scaling,
            weights=self._weights.to(call.query.device),
            stop=self._stop,
            mask=None if mask is None else mask[:, :, -rows:],
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks[heads],
        )


@contextmanager
def column_sums(
    model: Any, heads: Heads | None, stop: int, weights: Tensor, reduce: Reduce = lambda x: x
) -> Iterator[ColumnSums]:
    """Inside the block every pass leaves weighted sums of the attention from its last rows to the positions before `stop`.

    Args:
        model: A `Model`, or a transformers model.
        heads: Whose attention (None: all heads of all attention layers).
        stop: Columns are the positions 0 to `stop` - 1.
        weights: [B, R], how much each of the R newest rows counts; see `attention_columns`.
        reduce: Applied to a layer's [B, n, stop] before it is kept, so that nothing as long as the text need be held for all layers.

    Yields:
        The sums; each pass replaces those of the one before.

    Raises:
        HeadwiseError: Heads of another model; and in a pass over a compressed cache, which does not hold all columns.
    """
    with attached(model) as plan:
        sums = ColumnSums(plan.model.by_layer(heads), stop, weights, reduce)
        with plan.running(sums):
            yield sums
