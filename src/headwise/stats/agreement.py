"""How concentrated head scores are, and how far two halves of the runs agree. Plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def gini(values: Array) -> float:
    """Gini coefficient of scores.

    Args:
        values: non-negative scores of any shape; NaN is left out.

    Returns:
        0 if all are equal, towards 1 if one head has everything; NaN if there is no positive score.
    """
    x = np.sort(values[~np.isnan(values)].astype(np.float64))
    if x.size == 0 or x.sum() <= 0:
        return float("nan")
    rank = np.arange(1, x.size + 1)
    return float((2 * rank - x.size - 1) @ x / (x.size * x.sum()))


def pearson(a: Array, b: Array) -> float:
    """Pearson correlation of two score tables.

    Args:
        a: scores of any shape; NaN = not scored.
        b: of the same shape; only heads that both score count.

    Returns:
        A number in [-1, 1]; NaN if one is constant or no head is scored by both.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        return float("nan")
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def split_half_reliability(runs: Array, splits: int = 50, seed: int = 0) -> float:
    """Mean Pearson correlation between the scores of two random halves of the runs.

    Args:
        runs: scores [run, layer, head].
        splits: number of random halvings.
        seed: of the halvings.

    Returns:
        A number in [-1, 1]; NaN below 2 runs.
    """
    if len(runs) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = rng.permutation(len(runs))
        half = len(runs) // 2
        found.append(pearson(runs[order[:half]].mean(axis=0), runs[order[half : 2 * half]].mean(axis=0)))
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


def top_overlap(a: Array, b: Array, k: int) -> float:
    """Share of the k strongest heads that two score tables have in common.

    Args:
        a: scores of any shape; NaN counts as weakest, and of equal heads the earlier one is stronger.
        b: of the same shape.
        k: at least 1.

    Returns:
        A number in [0, 1].
    """
    tops = [set(np.argsort(-np.nan_to_num(x, nan=-np.inf), axis=None, kind="stable")[:k].tolist()) for x in (a, b)]
    return len(tops[0] & tops[1]) / k


def split_half_top_overlap(runs: Array, k: int, splits: int = 50, seed: int = 0) -> float:
    """Mean share of the k strongest heads that two random disjoint halves of the runs have in common.

    Args:
        runs: scores [run, layer, head].
        k: number of strongest heads.
        splits: number of random halvings.
        seed: of the halvings.

    Returns:
        A number in [0, 1]; NaN below 2 runs.
    """
    if len(runs) < 2:
        return float("nan")
    rng, half = np.random.default_rng([seed, 22]), len(runs) // 2
    orders = [rng.permutation(len(runs)) for _ in range(splits)]
    return float(np.mean([top_overlap(runs[o[:half]].mean(axis=0), runs[o[half : 2 * half]].mean(axis=0), k) for o in orders]))
