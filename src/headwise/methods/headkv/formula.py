"""Budgets of HeadKV's released form (Fu et al. 2024, arXiv:2410.19258): positions for every query head, all layers together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Scores


def query_head_counts(scores: Scores, budget: int, beta: float) -> NDArray[np.int64]:
    """How many positions each query head may choose besides its window.

    Every head has `budget` - p for sure, p = floor(budget / beta), and the pool of p per head is shared out by score; each count is rounded by
    itself, so their mean may miss the budget by less than 1/2.

    Args:
        scores: Scores of query heads [layer, head], not negative; NaN counts as 0.
        budget: Positions per query head on average, without the window.
        beta: At least 1; 1 / beta of the budget goes by score.

    Returns:
        Counts of the same shape.

    Raises:
        HeadwiseError: A beta below 1, scores that are negative or all zero.
    """
    found = np.nan_to_num(np.asarray(scores, dtype=np.float64))
    if beta < 1:
        raise HeadwiseError(f"beta must be at least 1 (at 1 the whole budget is divided by score); got {beta:g}")
    if (found < 0).any() or found.sum() == 0:
        raise HeadwiseError("head scores must not be negative, nor all zero, to divide a budget by them")
    pool = int(budget / beta)
    counts: NDArray[np.int64] = np.rint(budget - pool + found / found.sum() * pool * found.size).astype(np.int64)
    return counts
