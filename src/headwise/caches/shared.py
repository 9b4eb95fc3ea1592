"""Caches for shared prefixes: a full cache, forks that cost nothing until they grow, many rows over one past, texts side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from headwise.attention.call import Call, KeyProvider, Whole
from headwise.attention.plan import attached
from headwise.caches.roomy import RoomyLayer
from headwise.heads.errors import HeadwiseError


def full_cache(model: Any) -> DynamicCache:
    """An empty cache that keeps every position in every attention layer, so that it can be forked and cropped anywhere.

    transformers' own cache drops old positions of sliding-window layers; the windows are applied by the mask here.

    Args:
        model: A transformers model.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer for layer in cache.layers]
    return cache


def fork(cache: DynamicCache, length: int | None = None) -> DynamicCache:
    """A cache with the same content that grows independently.

    Keys and values are shared until one side grows; recurrent states, which change in place, are copied.

    Args:
        cache: Of `full_cache` or `shared_past`.
        length: Take its first `length` positions only; None: all.

    Raises:
        HeadwiseError: A length is given, but there are recurrent states, which cannot be cut.
    """
    twin = copy.copy(cache)
    twin.layers = [_fork_layer(layer, length) for layer in cache.layers]
    return twin


def cut_back(cache: DynamicCache, count: int) -> None:
    """Take the newest positions out of a cache, in place.

    Args:
        cache: Of `full_cache` or `shared_past`, without recurrent states, which cannot be cut.
        count: How many; 0 changes nothing.
    """
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


def side_by_side(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Texts of any lengths, one cache each, as the rows of one batch: shorter ones are filled up with zeros on the left, which a mask must hide.

    Args:
        caches: Of one model and of `full_cache`, with one row each; they are left as they are.

    Returns:
        A cache as long as the longest of them, with room to grow. It shares nothing with them.

    Raises:
        HeadwiseError: Their keys were turned with different rotary tables.
    """
    if len({getattr(cache, "headwise_table", None) for cache in caches if cache.get_seq_length()}) > 1:
        raise HeadwiseError(
            "the rotary table of this model depends on the text's length, and these texts need different ones; make them equally long"
        )
    longest = max(caches, key=lambda cache: cache.get_seq_length())
    made = copy.copy(longest)
    made.layers = [_rows_of([cache.layers[i] for cache in caches], longest.layers[i]) for i in range(len(longest.layers))]
    return made


def _rows_of(layers: Sequence[Any], longest: Any) -> Any:
    if isinstance(longest, LinearAttentionCacheLayerMixin):
        made = _fork_layer(longest, None)
        for name in ("conv_states", "recurrent_states"):
            for i, state in getattr(made, name).items():
                if state is not None:  # in front of a text the state is zero
                    rows = [getattr(layer, name).get(i) for layer in layers]
                    getattr(made, name)[i] = torch.cat([torch.zeros_like(state) if row is None else row for row in rows])
        return made
    grown = RoomyLayer()
    if longest.is_initialized:
        length = longest.keys.shape[2]
        grown.update(*(torch.cat([_filled(layer, name, getattr(longest, name), length) for layer in layers]) for name in ("keys", "values")))
    return grown


def _filled(layer: Any, name: str, like: Tensor, length: int) -> Tensor:
    """[1, G, length, width]: the keys or values of a layer with zeros in front."""
    own = getattr(layer, name) if layer.is_initialized else like[:, :, :0]
    return torch.nn.functional.pad(own, (0, 0, length - own.shape[2], 0))


class OwnLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """New positions of several rows; the positions before them are one past that all rows share (see `shared_past`)."""

    def __init__(self, past_length: int) -> None:
        super().__init__()
        self.past_length = past_length

    def get_seq_length(self) -> int:
        """Logical length: shared past and own positions."""
        return self.past_length + int(super().get_seq_length())


class SharedPast:
    """Step: puts keys and values that all batch rows share in front of each row's own.

    Attributes:
        by_layer: Layer -> (keys, values) [1, G, P, d] each; layers that are missing keep what they have.
    """

    def __init__(self) -> None:
        self.by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def choose_keys(self, call: Call) -> KeyProvider:
        """The shared past and the row's own keys."""
        past = self.by_layer.get(call.layer)
        if past is None:
            return call.source
        own = call.whole
        return Whole((past[0], *own.keys), (past[1], *own.values), own.mask)


@contextmanager
def shared_past(model: Any, past: DynamicCache, rows: int) -> Iterator[DynamicCache]:
    """Run passes of many rows that all continue one row, without copying its keys and values.

    Passes inside the block must use the yielded cache (or a fork of it). Positions of the past are read once for all rows.

    Args:
        model: A `Model`, or a transformers model.
        past: A cache of one row; it is left as it is.
        rows: Batch rows.

    Yields:
        A cache of `rows` batch rows, as long as `past`, that holds only what the rows add.

    Raises:
        HeadwiseError: Another block with a shared past is open.
    """
    with attached(model) as plan:
        if any(isinstance(step, SharedPast) for step in plan.choosing):
            raise HeadwiseError("blocks with a shared past cannot be nested")
        cache, step = copy.copy(past), SharedPast()
        cache.layers = []
        for index, layer in enumerate(past.layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                cache.layers.append(_repeated(_fork_layer(layer, None), rows))
                continue
            if not layer.is_initialized:
                cache.layers.append(DynamicLayer())
                continue
            step.by_layer[index] = (layer.keys, layer.values)
            cache.layers.append(OwnLayer(layer.keys.shape[2]))
        with plan.running(step):
            yield cache


def _repeated(layer: Any, rows: int) -> Any:
    layer.reorder_cache(torch.zeros(rows, dtype=torch.int64, device=layer.device))
    return layer
