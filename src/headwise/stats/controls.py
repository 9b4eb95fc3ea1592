"""Seeded controls: random heads that differ from the chosen ones in nothing but having been chosen by chance.

Three kinds, because a random head is no single thing: of the same layers (neighbours of the chosen heads), of any layer, and of about the same
output norm (strong heads are big heads, and the loss of a big one costs more, whatever it does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    chosen, free = _free(chosen, pool)
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
    note = f"layer-matched random heads (seed {_told(seed)}) for {chosen.chosen_by or 'a head set'}"
    return HeadSet(tuple(drawn[head] for head in chosen), chosen.shape, f"{note}; too few heads: {moves}" if moves else note)


def any_layer_random(chosen: Heads, pool: HeadScores | NDArray[np.bool_], seed: int | Sequence[int]) -> HeadSet:
    """As many heads as were chosen, drawn evenly from all others of the pool, whatever their layer.

    Args and errors as in `layer_matched_random`.
    """
    chosen, free = _free(chosen, pool)
    rng = np.random.default_rng(seed)
    places = rng.choice(np.flatnonzero(free), size=len(chosen), replace=False)
    heads = sorted(HeadId(*(int(i) for i in divmod(int(place), chosen.shape[1]))) for place in places)
    return HeadSet(tuple(heads), chosen.shape, f"random heads of any layer (seed {_told(seed)})")


def norm_matched_random(chosen: Heads, norms: NDArray[np.floating[Any]], seed: int | Sequence[int], nearest: int = 8) -> HeadSet:
    """For each chosen head, one of the `nearest` other heads by output norm; no head twice, none of the chosen ones.

    Args:
        chosen: The heads to match.
        norms: [layer, head] mean norm of each head's output; NaN where there is no head to draw.
        seed: The draw is a function of it.
        nearest: How many heads of nearly the same norm one is drawn from.

    Raises:
        HeadwiseError: Too few other heads, or norms of a model of another shape.
    """
    chosen, free = _free(chosen, ~np.isnan(norms))
    rng = np.random.default_rng(seed)
    drawn = []
    for head in chosen:
        places = np.flatnonzero(free)
        distance = np.abs(norms.ravel()[places] - norms[head])
        place = int(rng.choice(places[np.argsort(distance, kind="stable")[:nearest]]))
        free.ravel()[place] = False
        drawn.append(HeadId(*(int(i) for i in divmod(place, chosen.shape[1]))))
    return HeadSet(tuple(drawn), chosen.shape, f"random heads of nearly the same output norm (seed {_told(seed)})")


def _draw(free: NDArray[np.bool_], layer: int, rng: np.random.Generator) -> HeadId:
    """A random free head of the layer, which is not free afterwards."""
    head = HeadId(layer, int(rng.choice(np.flatnonzero(free[layer]))))
    free[head] = False
    return head


def _free(chosen: Heads, pool: HeadScores | NDArray[np.bool_]) -> tuple[HeadSet, NDArray[np.bool_]]:
    """The chosen heads, and a mask [layer, head] of those that may be drawn in their place."""
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
    return chosen, free


def _told(seed: int | Sequence[int]) -> str:
    return str(seed if isinstance(seed, int) else list(seed))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
