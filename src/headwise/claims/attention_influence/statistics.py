"""Statistics of scores of documents: intervals by drawing documents again, placements, rank correlations inside groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.stats.paired import bootstrap_mean
from headwise.stats.ranks import Values, auc, ranks_within, spearman

RESAMPLINGS = 2000

Array = NDArray[np.float64]
Interval = tuple[float, float, float]
"""A value and the two ends of its 95 % interval."""


def bootstrap(statistic: Callable[[Mapping[str, NDArray[np.int64]]], float], sizes: Mapping[str, int], seed: int = 0) -> Interval:
    """A statistic of groups of documents with its 95 % interval: documents are drawn again with replacement inside each group.

    Args:
        statistic: Of the places of the documents of each group.
        sizes: Documents of each group.
        seed: Of the resamplings.
    """
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic({name: rng.integers(n, size=n) for name, n in sizes.items()}) for _ in range(RESAMPLINGS)])
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return statistic({name: np.arange(n) for name, n in sizes.items()}), float(low), float(high)


def mean_interval(values: Values) -> Interval:
    """Mean of documents with its 95 % interval."""
    mean, low, high = bootstrap_mean(np.asarray(values, dtype=np.float64))
    return mean, low, high


def auc_interval(positives: Array, negatives: Array) -> Interval:
    """AUC with its 95 % interval over documents."""
    sizes = {"positives": len(positives), "negatives": len(negatives)}
    return bootstrap(lambda at: auc(positives[at["positives"]], negatives[at["negatives"]]), sizes)


def placements(positives: Array, negatives: Array) -> Array:
    """[positive] share of the negatives below each positive, ties counted half. Their mean is the AUC."""
    below = (positives[:, None] > negatives[None]).mean(axis=1)
    return np.asarray(below + 0.5 * (positives[:, None] == negatives[None]).mean(axis=1))


def standard_ranks(values: Values, groups: NDArray[np.int64]) -> Array:
    """[n] ranks inside each group with mean 0 and variance 1; the mean product of two is their rank correlation inside groups."""
    out = ranks_within(values, groups)
    for group in np.unique(groups):
        where = groups == group
        spread = out[where].std()
        out[where] = (out[where] - out[where].mean()) / (spread if spread > 0 else 1.0)
    return out


def without_influence_of(ranks: Array, others: Sequence[Array]) -> Array:
    """What is left of ranks when the part that other ranks explain linearly is taken away."""
    table = np.column_stack([np.ones(len(ranks)), *others])
    left = ranks - table @ np.linalg.lstsq(table, ranks, rcond=None)[0]
    spread = left.std()
    return np.asarray(left / (spread if spread > 0 else 1.0))


def removed(before: float, after: float) -> float:
    """Share of a correlation that is gone; NaN if there was none."""
    return 1 - abs(after) / abs(before) if before else float("nan")


def strata(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[n] number of each document's stratum of length, of which there are `count` with about equally many documents."""
    return np.searchsorted(np.quantile(tokens, np.arange(1, count) / count), tokens)


def inside_strata(scores: Array, tokens: NDArray[np.int64], count: int) -> float:
    """Spearman's correlation of scores and length inside a stratum of length, mean of `count` strata; those without any spread count as 0."""
    groups = strata(tokens, count)
    inside = [spearman(scores[groups == group], tokens[groups == group]) for group in np.unique(groups)]
    return float(np.mean(np.nan_to_num(inside)))


def rounded(value: Any) -> Any:
    """Plain data with four digits behind the point."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rounded(one) for one in value)
    return round(float(value), 4) if isinstance(value, float | np.floating) else value
