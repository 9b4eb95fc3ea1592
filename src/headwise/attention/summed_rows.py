"""What all heads together attend to, at chosen rows: what a chooser for all layers is taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headwise.attention.call import Call
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import softmax_rows
from headwise.maths.rows import Keys, visible_logits
from headwise.models.model import Model


class SummedRows:
    """Step of the pipeline: mean attention of some rows over all layers with full attention, per KV head, and over chosen heads.

    Args:
        model: That runs, without a cache.
        rows: [R] positions.
        by_layer: Layer -> chosen heads; empty: none.
        share: What the mean of the chosen heads counts beside the mean of all, in [0, 1].
    """

    def __init__(self, model: Model, rows: Tensor, by_layer: Mapping[int, Sequence[int]], share: float) -> None:
        self._rows, self._by_layer, self._share = rows, by_layer, share if by_layer else 0.0
        self._full, self._groups = set(model.heads.full_layers), model.heads.kv_heads
        self._all: Tensor | None = None
        self._own: Tensor | None = None

    def look(self, call: Call) -> None:
        """Add one layer."""
        if call.layer not in self._full:
            return
        length = call.query.shape[2]
        mask = (torch.arange(length, device=self._rows.device) <= self._rows[:, None])[None, None]
        blocks = visible_logits(call.query[:, :, self._rows], Keys(call.keys), call.scaling, mask, call.softcap, length)
        weights = softmax_rows(torch.cat([block for _, block in blocks], dim=-1), call.sinks)
        split = weights.view(len(weights), self._groups, -1, *weights.shape[2:]).mean(dim=2)
        self._all = split if self._all is None else self._all + split
        if own := self._by_layer.get(call.layer):
            found = weights[:, list(own)].sum(dim=1, keepdim=True)
            self._own = found if self._own is None else self._own + found

    def attention(self) -> Tensor:
        """[B, G, R, T]."""
        if self._all is None:
            raise HeadwiseError("no layer with full attention has run")
        mean = self._all / len(self._full)
        if self._own is None:
            return mean
        return (1 - self._share) * mean + self._share * self._own / sum(map(len, self._by_layer.values()))
