"""Rank statistics of plain numbers: average ranks, Spearman's correlation, the area under the ROC curve. Plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.stats.agreement import pearson

Values = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]


def average_ranks(values: Values) -> NDArray[np.float64]:
    """[n] ranks from 1, smallest first; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place.reshape(-1)]
    return ranks


def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        a: [n].
        b: [n].

    Returns:
        A number in [-1, 1]; NaN if one is constant or n is below 2.
    """
    return pearson(average_ranks(a), average_ranks(b)) if len(a) > 1 else float("nan")


def auc(positives: Values, negatives: Values) -> float:
    """The chance that a positive value exceeds a negative one, ties counted half (Mann-Whitney).

    Args:
        positives: [n].
        negatives: [m].

    Returns:
        A number in [0, 1]; NaN if a side is empty.
    """
    n, m = len(positives), len(negatives)
    if not n or not m:
        return float("nan")
    ranks = average_ranks(np.concatenate([positives, negatives]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def ranks_within(values: Values, groups: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Ranks inside groups: what is left of values when groups are made alike.

    Args:
        values: [n].
        groups: [n] number of each value's group.

    Returns:
        [n] share of the own group that lies below a value, ties counted half; in (0, 1).
    """
    out = np.empty(len(values))
    for group in np.unique(groups):
        where = groups == group
        out[where] = (average_ranks(values[where]) - 0.5) / where.sum()
    return out
