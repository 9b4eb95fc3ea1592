"""How many positions every layer or KV head may keep: whole numbers with a given sum, from weights.

Formulas of the papers as pure functions; a rule that looks at scores of the prompt (AdaKV) takes them as a tensor, all others are known before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError


def fitted(wanted: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole numbers near `wanted` whose sum is `total`, or as near to it as the limits allow.

    What limits take away from one goes to the others in proportion to what they wanted; equal wishes differ by at most 1, earlier ones larger.

    Args:
        wanted: Weights; negative ones count as 0, and if all are 0, they count as equal.
        total: Sum of the counts.
        least: Lower limit of every count.
        most: Upper limit of every count.

    Returns:
        One count per weight, in the same order.

    Raises:
        HeadwiseError: A weight that is no finite number.
    """
    weights = np.maximum(np.asarray(wanted, dtype=np.float64), 0)
    if not np.isfinite(weights).all():
        raise HeadwiseError("budget weights must be finite numbers")
    total = min(max(total, least * len(weights)), most * len(weights))
    low, high = 0.0, 1.0
    weights = weights / weights.max() * max(total, 1) if weights.max() > 0 else np.full_like(weights, max(total, 1))
    while np.clip(weights * high, least, most).sum() < total and high < 1e15:
        high *= 2
    for _ in range(100):  # the factor at which the clipped shares add up
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(weights * middle, least, most).sum() < total else (low, middle)
    shares = np.clip(weights * high, least, most)
    counts = np.floor(shares + 1e-9).astype(int)
    room = [i for i in np.argsort(-(shares - counts), kind="stable") if counts[i] < most]
    room += [i for i in np.argsort(-weights, kind="stable") if counts[i] < most and i not in room]
    missing = total - int(counts.sum())
    while missing > 0 and room:
        for i in room[:missing]:
            counts[i] += 1
        room = [i for i in room if counts[i] < most]
        missing = total - int(counts.sum())
    return [int(count) for count in counts]


def pyramid(layers: int, budget: int, beta: float) -> list[float]:
    """Shares that fall linearly from the first layer to the last, with `budget` as their mean (PyramidKV, Cai et al. 2024, section 3.2).

    The last layer gets budget / beta, the first what is left of 2 budget.

    Args:
        layers: How many.
        budget: Mean positions per layer.
        beta: At least 1.

    Returns:
        One share per layer, in positions, not rounded.

    Raises:
        HeadwiseError: A beta below 1.
    """
    if beta < 1:
        raise HeadwiseError(f"the pyramid's beta must be at least 1; got {beta:g}")
    last = budget / beta
    return [float(share) for share in np.linspace(2 * budget - last, last, layers)]


def error_shares(errors: Sequence[float], budget: int, least: int) -> list[float]:
    """`least` for every layer, and the rest of layers x budget in proportion to the layers' errors (CompressKV, algorithm 1).

    Args:
        errors: One per layer, finite and not negative, not all 0.
        budget: Mean positions per layer.
        least: Floor of every share; with a floor above the budget nothing is left to divide.

    Returns:
        One share per layer, in positions, not rounded.

    Raises:
        HeadwiseError: Errors that are no such numbers.
    """
    found = np.asarray(errors, dtype=np.float64)
    if found.size == 0 or not np.isfinite(found).all() or (found < 0).any() or found.sum() == 0:
        raise HeadwiseError("layer errors must be finite, not negative, and not all zero")
    rest = len(found) * (budget - least)
    return [float(share) for share in least + found / found.sum() * max(rest, 0)]


def head_shares(scores: Sequence[Sequence[float]], budget: int, beta: float) -> list[list[float]]:
    """Shares by score: a base for all heads, and a pool of 1 / beta of everything in proportion to the scores (HeadKV, Fu et al. 2024, sec. 3.2).

    Args:
        scores: [layer][KV head], not negative, not all 0; heads without a score (NaN) count as 0.
        budget: Mean positions per KV head.
        beta: At least 1.

    Returns:
        [layer][KV head], in positions, not rounded; their mean is `budget`.

    Raises:
        HeadwiseError: A beta below 1, or scores that are no such numbers.
    """
    found = np.nan_to_num(np.asarray(scores, dtype=np.float64))
    if beta < 1:
        raise HeadwiseError(f"beta must be at least 1 (at 1 the whole budget is divided by score); got {beta:g}")
    if (found < 0).any() or found.sum() == 0:
        raise HeadwiseError("head scores must not be negative, nor all zero, to divide a budget by them")
    pool = budget / beta
    return [[float(share) for share in row] for row in budget - pool + found / found.sum() * pool * found.size]


def adaptive_counts(scores: Tensor, budget: int, floor: float) -> list[int]:
    """How many of the heads x budget highest scores of a layer belong to each head (AdaKV, Feng et al. 2024, algorithm 1).

    Args:
        scores: [n, S], of n heads.
        budget: Mean positions per head.
        floor: Share of the budget in [0, 1] that every head keeps in any case (the paper's safeguard).

    Returns:
        n counts, whose sum is n x budget where the prompt has so many positions.

    Raises:
        HeadwiseError: A floor outside of [0, 1].
    """
    if not 0 <= floor <= 1:
        raise HeadwiseError(f"the floor must lie in [0, 1]; got {floor:g}")
    heads, length = scores.shape
    sure = min(int(floor * budget), length)
    marked = scores.clone()
    marked.scatter_(1, scores.topk(sure, dim=1).indices, torch.inf)
    chosen = marked.flatten().topk(min(heads * budget, heads * length)).indices
    return [int(count) for count in torch.bincount(chosen // length, minlength=heads)]
