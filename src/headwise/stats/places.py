"""Positions with a score each: the best one, how far it lies from where it should, and what that distance usually is. Plain numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

FARTHEST = 2  # positions that heads may look behind a source token, or in front of it
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def best_position(scores: Values, allowed: Flags, shift: int = 0) -> int:
    """The allowed position with the largest score; the lowest of equal ones.

    Positions that have no score once they are moved come last: they count only where no allowed position has one.

    Args:
        scores: [P], not moved yet.
        allowed: [P].
        shift: How far behind a source token the heads look at it (card, section 8): the position `shift` in front of the best one is the source.

    Returns:
        A position; -1 if none is allowed.
    """
    if not allowed.any():
        return -1
    scored = allowed & shifted(np.ones_like(scores), shift).astype(bool)
    return int(np.argmax(np.where(scored if scored.any() else allowed, shifted(scores, shift), -np.inf)))


def shifted(scores: Values, shift: int) -> Values:
    """[..., P] scores moved `shift` positions to the front; what has no score then gets the lowest one of its row, and never more than 0.

    The lowest one may be that of other positions too: ask `best_position` for the best one.
    """
    if shift == 0:
        return scores
    moved = np.broadcast_to(scores.min(axis=-1, keepdims=True, initial=0.0), scores.shape).copy()
    if shift > 0:
        moved[..., :-shift] = scores[..., shift:]
    else:
        moved[..., -shift:] = scores[..., :shift]
    return moved


def offset_to(position: int, wanted: Sequence[int]) -> int:
    """How far behind the nearest wanted position one lies (negative: in front of it); of two equally near ones the earlier counts.

    Args:
        position: The position.
        wanted: Positions, at least one.
    """
    return min((position - place for place in wanted), key=lambda distance: (abs(distance), -distance))


def usual_shift(offsets: Iterable[int]) -> int:
    """The most frequent offset of at most `FARTHEST` positions; 0 if none is that near, and among equally frequent ones the nearest to 0."""
    counts = Counter(offset for offset in offsets if abs(offset) <= FARTHEST)
    return min(counts, key=lambda offset: (-counts[offset], abs(offset), offset), default=0)
