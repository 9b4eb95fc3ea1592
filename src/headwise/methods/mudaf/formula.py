"""How well a head's attention picks the gold passages of one question (Liu et al. 2025, MuDAF, arXiv:2502.13963, and their released code)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwise.stats.ranking import gold_by_rank

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


def passage_measures(masses: Values, gold: Flags, tau: float = 0.3) -> dict[str, Values]:
    """Precision, recall, F1, exact match and average precision of each head on one question.

    A head picks the passages whose mass is above `tau`; none may be (then precision is 0).

    Args:
        masses: [L, H, P], attention mass of each passage, or its share, in [0, 1]; NaN where a head is not scored.
        gold: [P], at least one True.
        tau: Mass above which a passage is picked.

    Returns:
        By name, each [L, H] in [0, 1]: `precision`, `recall`, `f1`; `em`, 1 where the picked passages hold at least as many as there are gold
        ones and those with the largest masses are the gold ones (among equal masses the first passage wins); `ap`, average precision of all
        passages by mass, whatever `tau` (ours; among equal masses the gold ones come last). NaN where a head is not scored.
    """
    count = int(gold.sum())
    picked = masses > tau
    hits = (picked & gold).sum(axis=-1)
    recall = hits / count
    strongest = np.argsort(-masses, axis=-1, kind="stable")[..., :count]
    found = gold_by_rank(masses, gold)
    precision_at = found.cumsum(axis=-1) / np.arange(1, len(gold) + 1)
    measures = {
        "precision": hits / np.maximum(picked.sum(axis=-1), 1),
        "recall": recall,
        "f1": 2 * hits / (picked.sum(axis=-1) + count),
        "em": ((recall == 1) & gold[strongest].all(axis=-1)).astype(np.float64),
        "ap": (precision_at * found).sum(axis=-1) / count,
    }
    missing = np.isnan(masses).any(axis=-1)
    return {name: np.where(missing, np.nan, values) for name, values in measures.items()}


def shares(masses: Values) -> Values:
    """Masses divided by the mass on all passages together [..., P]; 0 for a head that looks at none of them."""
    total = masses.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(masses, total, out=np.zeros_like(masses), where=total != 0))
