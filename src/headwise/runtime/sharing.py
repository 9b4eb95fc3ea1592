"""The order in which prompts share most text: sorted, each one begins with the longest text it has in common with any before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 16  # a shorter stretch costs more as a pass of its own than it saves


def sharing_order(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(index, shared) for every prompt: it continues the first `shared` tokens of the prompt before it in this order.

    Sorting puts the best partner of a prompt right in front of it, so running len - shared tokens of each prompt runs every distinct
    stretch of text once. At least one token of every prompt is left to run.
    """
    arrays = [np.asarray(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: arrays[i].tolist())
    shared = [0, *(_common(arrays[a], arrays[b]) for a, b in pairwise(order))]
    return list(zip(order, shared, strict=True))


def branch_points(shared: Sequence[int], start: int, least: int = LEAST_SHARED) -> list[int]:
    """Lengths above `start` at which later prompts leave the present one, ascending and at least `least` apart.

    shared: the second entries of `sharing_order` for the prompts after the present one.
    """
    lowest: list[int] = []
    for length in shared:
        if not lowest or length < lowest[-1]:
            lowest.append(length)
        if length < start + least:
            break
    points: list[int] = []
    for length in reversed(lowest):
        if length >= (points[-1] if points else start) + least:
            points.append(length)
    return points


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the common prefix, at most one less than either prompt."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return min(int(different[0]) if len(different) else n, len(a) - 1, len(b) - 1)
