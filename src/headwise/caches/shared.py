"""Caches for shared prefixes: a full cache, forks that cost nothing until they grow, and many rows over one past."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError


def full_cache(model: Any) -> DynamicCache:
    """An empty cache that keeps every position in every attention layer, so that it can be forked and cropped anywhere.

    transformers' own cache drops old positions of sliding-window layers; the windows are applied by the mask here.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer for layer in cache.layers]
    return cache


def fork(cache: DynamicCache, length: int | None = None) -> DynamicCache:
    """A cache with the same content (or its first `length` positions) that grows independently.

    Keys and values are shared until one side grows; recurrent states, which change in place, are copied. Recurrent states cannot be
    cut, so `length` is refused for them.
    """
    twin = copy.copy(cache)
    twin.layers = [_fork_layer(layer, length) for layer in cache.layers]
    return twin


def cut_back(cache: DynamicCache, count: int) -> None:
    """Take the last `count` positions out of a cache of `full_cache` or `shared_past` (recurrent states cannot be cut)."""
    if count:
        cache.crop(-count)


def _fork_layer(layer: Any, length: int | None) -> Any:
    twin = copy.copy(layer)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        if length is not None:
            raise HeadwiseError("a recurrent state cannot be cut to a shorter text")
        for name in ("conv_states", "recurrent_states"):
            states: dict[int, Tensor | None] = getattr(layer, name)
            setattr(twin, name, {i: None if state is None else state.clone() for i, state in states.items()})
        for name in ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size"):
            setattr(twin, name, dict(getattr(layer, name)))
    elif length is not None and layer.is_initialized:
        twin.keys, twin.values = layer.keys[:, :, :length], layer.values[:, :, :length]
    return twin


class OwnLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """New positions of several rows; the positions before them are one past that all rows share (see `shared_past`)."""

    def __init__(self, past_length: int) -> None:
        super().__init__()
        self.past_length = past_length

    def get_seq_length(self) -> int:
        """Logical length: shared past and own positions."""
        return self.past_length + int(super().get_seq_length())


@contextmanager
def shared_past(model: Any, past: DynamicCache, rows: int) -> Iterator[DynamicCache]:
    """Yield a cache for `rows` batch rows that all continue the one row in `past`, without copying its keys and values.

    Passes inside the block must use the yielded cache (or a fork of it). Positions of the past are read once for all rows.
    """
    with attached(model) as plan:
        if plan.past:
            raise HeadwiseError("blocks with a shared past cannot be nested")
        cache = copy.copy(past)
        cache.layers = []
        for index, layer in enumerate(past.layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                cache.layers.append(_repeated(_fork_layer(layer, None), rows))
                continue
            if not layer.is_initialized:
                cache.layers.append(DynamicLayer())
                continue
            plan.past[index] = (layer.keys, layer.values)
            cache.layers.append(OwnLayer(layer.keys.shape[2]))
        try:
            yield cache
        finally:
            plan.past.clear()


def _repeated(layer: Any, rows: int) -> Any:
    layer.reorder_cache(torch.zeros(rows, dtype=torch.int64, device=layer.device))
    return layer
