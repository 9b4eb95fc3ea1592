"""Query scores: how well the attention that a head pays to passages tells the ones that answer a query.

All rules read the same table of passage values, so that one run serves them all. Sources: `mass` Zhang et al. 2025 (arXiv:2506.09944,
eq. 2-4); `calibrated_mass`, `ndcg` their released code; `mrr` ours; `contrastive` Tran et al. 2025 (arXiv:2510.02219).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.methods.query.options import RULES
from headwise.stats.ranking import gold_by_rank

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def query_score(values: Values, gold: Flags, rule: str, temperature: float = 0.1, cut: int = 10) -> Values:
    """Score of each head on one example.

    Args:
        values: [L, H, P], the value of each passage for each head.
        gold: [P], at least one True.
        rule: `mass`, `calibrated_mass`: sum over gold passages (the caller gives raw or calibrated values). `ndcg`: nDCG at `cut`
            of the passages sorted by value, in [0, 1]; `mrr`: 1 / rank of the first gold passage; equal values are ranked against
            the head. `contrastive`: mean over gold passages of a softmax over that passage and all that are not gold, of values
            as shares of the head's total.
        temperature: Of that softmax, above 0.
        cut: Ranks that nDCG looks at.

    Returns:
        [L, H].

    Raises:
        HeadwiseError: An unknown rule, or a temperature that is not above 0.
    """
    if rule in ("mass", "calibrated_mass"):
        return np.asarray(values[..., gold].sum(axis=-1))
    if rule == "contrastive":
        return _contrastive(values, gold, temperature)
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r}; use {', '.join(RULES)}")
    found = gold_by_rank(values, gold)
    if rule == "mrr":
        return np.asarray(1.0 / (1 + found.argmax(axis=-1)))
    discount = 1 / np.log2(np.arange(2, found.shape[-1] + 2))
    discount[cut:] = 0
    return np.asarray((found * discount).sum(axis=-1) / discount[: gold.sum()].sum())


def _contrastive(values: Values, gold: Flags, temperature: float) -> Values:
    if temperature <= 0:
        raise HeadwiseError(f"the temperature must be above 0; got {temperature:g}")
    total = np.abs(values).sum(axis=-1, keepdims=True)
    shares = np.divide(values, total, out=np.zeros_like(values), where=total > 0) / temperature
    positive, negative = shares[..., gold], shares[..., ~gold]
    top = np.maximum(positive.max(axis=-1, keepdims=True), negative.max(axis=-1, keepdims=True, initial=-np.inf))
    positive, others = np.exp(positive - top), np.exp(negative - top).sum(axis=-1, keepdims=True)
    return np.asarray((positive / (positive + others)).mean(axis=-1))
