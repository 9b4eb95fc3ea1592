"""Compressed caches of one prompt as the rows of one batch: the weights of the model are then read once per token for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from headwise.caches.groups import EMPTY, Group, Growing
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import KeptLayer, Pass
from headwise.heads.errors import HeadwiseError


def can_be_stacked(cache: KeptCache) -> bool:
    """Whether the prefill has ended, there is one row, and no layer holds a sliding window or a recurrent state."""
    layers = cache.kept_layers
    groups = [group for layer in layers.values() for group in layer.groups or (None,)]
    return len(layers) == len(cache.layers) and all(isinstance(group, Growing) and len(group.keys) == 1 for group in groups)


def stacked(caches: Sequence[KeptCache], spare: int) -> KeptCache:
    """One cache whose batch rows are these caches; each row attends to what its own cache holds. They are left as they are.

    Rows that hold fewer positions than others are filled up with empty places, which the mask hides.

    Args:
        caches: Of one model, each with one row, all of them behind the same number of tokens; see `can_be_stacked`.
        spare: Room for so many new tokens.

    Raises:
        HeadwiseError: No caches, or some that do not go together.
    """
    lengths = {cache.get_seq_length() for cache in caches}
    if len(lengths) != 1 or len({id(cache.model.hf) for cache in caches}) != 1 or not all(map(can_be_stacked, caches)):
        raise HeadwiseError(
            "only caches of one model and of equally long texts, with one row each and without windows, can be the rows of one batch"
        )
    made = copy.copy(caches[0])
    made.running = Pass()
    made.layers = [_layer([cache.layers[i] for cache in caches], made, spare) for i in range(len(made.layers))]
    return made


def _layer(layers: Sequence[KeptLayer], cache: KeptCache, spare: int) -> KeptLayer:
    """KV heads with equally many places form a group."""
    made, kv_heads = copy.copy(layers[0]), cache.model.heads.kv_heads
    made.running = cache.running
    held = [_by_head(layer.groups or (), kv_heads) for layer in layers]  # [row][KV head] -> group and place in it
    room = [max(row[head][0].used for row in held) for head in range(kv_heads)]
    made.groups = []
    for places in sorted(set(room)):
        heads = [head for head in range(kv_heads) if room[head] == places]
        made.groups.append(_group([[row[head] for head in heads] for row in held], heads, places, spare, len(heads) == kv_heads))
    return made


def _by_head(groups: Sequence[Group], kv_heads: int) -> dict[int, tuple[Group, int]]:
    return {
        head: (group, place)
        for group in groups
        for place, head in enumerate(range(kv_heads) if group.heads is None else group.heads.tolist())
    }


def _group(
    held: Sequence[Sequence[tuple[Group, int]]], heads: Sequence[int], places: int, spare: int, all_heads: bool
) -> Growing:
    some, size = held[0][0][0], places + spare
    keys = some.keys.new_zeros(len(held), len(heads), size, some.keys.shape[3])
    values = some.values.new_zeros(len(held), len(heads), size, some.values.shape[3])
    positions = some.positions.new_full((len(held), len(heads), size), EMPTY)
    for row, own in enumerate(held):
        for to, (group, place) in enumerate(own):
            used = group.used
            keys[row, to, :used], values[row, to, :used] = group.keys[0, place, :used], group.values[0, place, :used]
            positions[row, to, :used] = group.positions[0, min(place, group.positions.shape[1] - 1), :used]
    holes = bool((positions[..., :places] == EMPTY).any())
    index = None if all_heads else torch.tensor(heads, device=keys.device)
    return Growing(index, keys, values, positions, places, holes)
