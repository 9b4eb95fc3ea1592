"""Small statistics for paired experiments: bootstrap intervals, sign flips, McNemar's test, rank p-values. Seeded, plain numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

Values = NDArray[np.floating[Any]]
ALTERNATIVES = ("two-sided", "less", "greater")
BLOCK = 2**22  # numbers held at once


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: of the items.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Values, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean with its percentile bootstrap interval; items are resampled with replacement.

    Args:
        values: [item]; one item gives an interval of width 0.
        level: coverage in (0, 1).
        draws: number of resamplings.
        seed: of the resamplings.

    Returns:
        The mean of the items themselves, and the interval of the resampled means.

    Raises:
        HeadwiseError: there is no item, a value is NaN or infinite, or the level is out of range.
    """
    x = _checked(values)
    if not 0 < level < 1:
        raise HeadwiseError(f"the level of an interval must lie in (0, 1); got {level:g}")
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(x))
    means = [x[rng.integers(len(x), size=(min(step, draws - i), len(x)))].mean(axis=1) for i in range(0, draws, step)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def wilson(count: int, total: int, z: float = 1.959964) -> Interval:
    """A share with its interval after Wilson (1927), which stays inside [0, 1] for small counts.

    Args:
        count: How many of the items.
        total: Items, at least one.
        z: Quantile of the normal distribution; the default covers 95 %.

    Raises:
        HeadwiseError: No item, or a count outside of 0 to `total`.
    """
    if total < 1 or not 0 <= count <= total:
        raise HeadwiseError(f"a share needs a count of 0 to {total} of at least one item; got {count} of {total}")
    share, square = count / total, z * z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total**2)) / (1 + square / total)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def sign_flip_test(differences: Values, alternative: str = "two-sided", draws: int = 10_000, seed: int = 0) -> float:
    """p-value of paired differences against a distribution that is symmetric around 0, with the mean as statistic.

    All 2^n sign patterns are counted if they are at most `draws`; else `draws` random ones, with the observed one added, so p is never 0.

    Args:
        differences: [item].
        alternative: "less" asks whether the mean is below 0, "greater" above, "two-sided" either.
        draws: number of sign patterns.
        seed: of random patterns.

    Returns:
        p in (0, 1].

    Raises:
        HeadwiseError: as `bootstrap_mean`, or the alternative is unknown.
    """
    x = _checked(differences)
    if alternative not in ALTERNATIVES:
        raise HeadwiseError(f"unknown alternative {alternative!r}; use {', '.join(ALTERNATIVES)}")
    observed, slack = x.sum(), 1e-12 * np.abs(x).sum()
    exact = len(x) < 63 and 2 ** len(x) <= draws
    total = 2 ** len(x) if exact else draws
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(x))
    extreme = 0
    for start in range(0, total, step):
        count = min(step, total - start)
        flips = (
            np.arange(start, start + count)[:, None] >> np.arange(len(x)) & 1 if exact else rng.integers(2, size=(count, len(x)))
        )
        sums = (1.0 - 2.0 * flips) @ x
        if alternative == "two-sided":
            extreme += int((np.abs(sums) >= abs(observed) - slack).sum())
        else:
            extreme += int((sums <= observed + slack).sum() if alternative == "less" else (sums >= observed - slack).sum())
    return extreme / total if exact else (1 + extreme) / (1 + total)


def mcnemar(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value of McNemar's test (1947): whether as many items were lost as were won.

    Args:
        before: [item], yes or no.
        after: [item], of the same items.

    Returns:
        p in (0, 1], from the binomial distribution of the changed items; 1 if none changed.

    Raises:
        HeadwiseError: the lists differ in length, or are empty.
    """
    a, b = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise HeadwiseError(f"McNemar's test needs two lists of the same items; got shapes {a.shape} and {b.shape}")
    won, lost = int((~a & b).sum()), int((a & ~b).sum())
    tail = sum(math.comb(won + lost, i) for i in range(min(won, lost) + 1))
    return float(min(1.0, 2 * tail / 2 ** (won + lost)))


def rank_p(top: float, controls: Values) -> float:
    """How rare a value as low as `top` is among control draws.

    Args:
        top: the value.
        controls: values of the draws.

    Returns:
        (1 + controls at or below `top`) / (1 + controls), in [1 / (1 + draws), 1].
    """
    x = _checked(controls)
    return float((1 + (x <= top).sum()) / (1 + len(x)))


def benjamini_hochberg(p_values: Values) -> NDArray[np.float64]:
    """p-values corrected for a family of tests, so that the expected share of false ones among those below a level is that level.

    Benjamini and Hochberg (1995), step-up: the i-th smallest of n values times n / i, never above a larger one's.

    Args:
        p_values: [test], each in (0, 1].

    Returns:
        [test], in the given order.

    Raises:
        HeadwiseError: There is no value, or one lies outside of [0, 1].
    """
    p = _checked(p_values)
    if ((p < 0) | (p > 1)).any():
        raise HeadwiseError("p-values lie between 0 and 1")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return corrected


def correct(rows: Iterable[dict[str, Any]]) -> None:
    """Give each row that has a `p` a `p_corrected` (Benjamini-Hochberg over all of them)."""
    tested = [row for row in rows if row.get("p") is not None]
    if tested:
        for row, p in zip(tested, benjamini_hochberg(np.asarray([row["p"] for row in tested])), strict=True):
            row["p_corrected"] = float(p)


def _checked(values: Values) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise HeadwiseError(f"statistics need a list of at least one value; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise HeadwiseError(f"{np.sum(~np.isfinite(x))} of {len(x)} values are NaN or infinite; leave them out first")
    return x
