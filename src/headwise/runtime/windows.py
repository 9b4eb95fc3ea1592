"""More passages than a model can read at once: windows that fit, and one order over all of them.

Attention sums to one inside a window, so scores of different windows cannot be compared. Two ways out: a `tournament` (only orders
inside windows count: the better half of each window goes on to the next round) and `anchored` windows (the same passage stands in
each of them, and scores count from the anchor's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import PromptError

OVERFLOW = ("tournament", "anchored", "refuse")
Scores = NDArray[np.float64]
Score = Callable[[Sequence[int]], Scores]


def rank_in_windows(score: Score, costs: Sequence[int], room: int | None, overflow: str) -> Scores:
    """A score per passage, also where not all can be read at once.

    Args:
        score: Takes indices of passages that are read together, gives their scores in that order.
        costs: Tokens of each passage.
        room: How many tokens may be read at once; None: no limit.
        overflow: What happens if not all fit: `tournament`, `anchored` (the anchor is the passage of median cost) or `refuse`.

    Returns:
        [passage], higher is better: `score` of all if they fit; after a tournament places (larger for later rounds, then by the order inside
        the last window); for anchored windows differences to the anchor, which itself has 0.

    Raises:
        PromptError: A single passage does not fit; `refuse`, and not all do; `anchored`, and one does not fit beside the anchor.
    """
    everything = list(range(len(costs)))
    if room is None or sum(costs) <= room:
        return score(everything)
    longest = int(np.argmax(costs))
    if costs[longest] > room:
        raise PromptError(
            f"passage {longest + 1} has {costs[longest]} tokens, but only {room} fit beside the query; shorten or split it"
        )
    if overflow == "refuse":
        raise PromptError(
            f"{len(costs)} passages have {sum(costs)} tokens, but only {room} fit beside the query; give fewer, or use overflow "
            "'tournament' or 'anchored'"
        )
    return (_tournament if overflow == "tournament" else _anchored)(score, costs, room)


def windows(chosen: Sequence[int], costs: Sequence[int], room: int) -> list[list[int]]:
    """Passages dealt out in turn to as few windows as that needs, all of about the same cost, so that good neighbours are kept apart.

    Args:
        chosen: Indices of passages, best first if an order is known.
        costs: Tokens of each passage, chosen or not.
        room: Most tokens of a window; no single passage costs more.

    Returns:
        Indices, window by window.
    """
    for count in range(-(-sum(costs[i] for i in chosen) // room), len(chosen) + 1):
        dealt = [list(chosen[start::count]) for start in range(count)]
        if all(sum(costs[i] for i in window) <= room for window in dealt):
            return dealt
    return [[i] for i in chosen]


def _tournament(score: Score, costs: Sequence[int], room: int) -> Scores:
    """Rounds of windows; who drops out in round r stands behind all who go on, ordered by the share of its window that it beat."""
    places = np.zeros(len(costs))
    left, level = list(range(len(costs))), 0.0
    while sum(costs[i] for i in left) > room:
        survivors: list[int] = []
        for window in windows(left, costs, room):
            order = sorted(window, key=dict(zip(window, score(window), strict=True)).__getitem__)
            for place, i in enumerate(order):
                places[i] = level + place / len(order)
            survivors += order[len(order) // 2 :]
        if len(survivors) == len(left):  # windows of one passage each: nothing can be compared
            survivors = sorted(left, key=lambda i: places[i])[len(left) // 2 :]
        left, level = sorted(survivors), level + 1.0
    order = sorted(left, key=dict(zip(left, score(left), strict=True)).__getitem__)
    for place, i in enumerate(order):
        places[i] = level + place / len(order)
    return places


def _anchored(score: Score, costs: Sequence[int], room: int) -> Scores:
    anchor = int(np.argsort(costs, kind="stable")[len(costs) // 2])
    others = [i for i in range(len(costs)) if i != anchor]
    left = room - costs[anchor]
    tight = [i for i in others if costs[i] > left]
    if tight:
        raise PromptError(f"passage {tight[0] + 1} does not fit into a window beside the anchor; use overflow 'tournament'")
    out = np.zeros(len(costs))
    for window in windows(others, costs, left):
        found = score([anchor, *window])
        out[window] = found[1:] - found[0]
    return out
