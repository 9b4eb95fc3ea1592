"""Seeded controls: random heads that differ from the chosen ones in nothing but having been chosen by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError
from headwise.heads.types import Heads


def layer_matched_random(chosen: Heads, pool: HeadScores | NDArray[np.bool_], seed: int | Sequence[int]) -> HeadSet:
    """For each chosen head one random head of its layer; no head twice, none of the chosen ones.

    Where a layer has too few other heads, the missing ones come from the nearest layers (the lower of two equally near ones); `chosen_by`
    names each such move.

    Args:
        chosen: the heads to match.
        pool: heads that may be drawn: all scored heads, or a mask [layer, head].
        seed: the draw is a function of it.

    Returns:
        As many heads as were chosen, each in the place of the one that it matches.

    Raises:
        HeadwiseError: the pool holds too few heads, or belongs to a model of another shape.
    """
    allowed = ~np.isnan(pool.values) if isinstance(pool, HeadScores) else pool
    if not isinstance(chosen, HeadSet):
        chosen = HeadSet.of(chosen, allowed.shape)
    if allowed.shape != chosen.shape:
        raise HeadwiseError(
            f"the chosen heads belong to a model of {_size(chosen.shape)}, the pool to one of {_size(allowed.shape)}"
        )
    free = allowed & ~chosen.mask()
    if free.sum() < len(chosen):
        raise HeadwiseError(
            f"{len(chosen)} random heads asked for, but only {free.sum()} heads are left beside the {len(chosen)} chosen ones; choose fewer"
        )
    rng = np.random.default_rng(seed)
    drawn: dict[HeadId, HeadId] = {}
    # Same-layer partners first, so that a head that has to move never takes the place of one that need not.
    for head in chosen:
        if free[head.layer].any():
            drawn[head] = _draw(free, head.layer, rng)
    moved = [head for head in chosen if head not in drawn]
    for head in moved:
        layers = np.flatnonzero(free.any(axis=1))
        drawn[head] = _draw(free, int(layers[np.abs(layers - head.layer).argmin()]), rng)
    moves = ", ".join(f"layer {drawn[head].layer} for layer {head.layer}" for head in moved)
    note = f"layer-matched random heads (seed {seed if isinstance(seed, int) else list(seed)}) for {chosen.chosen_by or 'a head set'}"
    return HeadSet(tuple(drawn[head] for head in chosen), chosen.shape, f"{note}; too few heads: {moves}" if moves else note)


def _draw(free: NDArray[np.bool_], layer: int, rng: np.random.Generator) -> HeadId:
    """A random free head of the layer, which is not free afterwards."""
    head = HeadId(layer, int(rng.choice(np.flatnonzero(free[layer]))))
    free[head] = False
    return head


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
