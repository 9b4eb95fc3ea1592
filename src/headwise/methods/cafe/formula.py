"""Coarse-to-fine selection of passages by the votes of heads (Peng et al. 2025, CAFE, arXiv:2505.10063, eq. 1-7). Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.methods.cafe.options import DOC_POOL

NO_MASS = 1e-12  # attention on all passages together below which a head has no opinion
Values = NDArray[np.float64]
Indices = NDArray[np.int64]


def passage_shares(masses: Values, lengths: NDArray[np.int64], doc_pool: str = "sum", eps: float = NO_MASS) -> Values:
    """Share of each passage in a head's attention to all passages (eq. 1).

    Args:
        masses: [..., P] >= 0, attention to all tokens of each passage (sum or mean over the question's rows: the same shares).
        lengths: [P], tokens.
        doc_pool: `sum` over a passage's tokens (favours long passages) or `mean` (favours short ones).
        eps: Mass on all passages together below which a head looks elsewhere.

    Returns:
        [..., P] in [0, 1]. The shares of a head sum to 1, or are all 0 if it looks elsewhere; a passage without tokens gets 0.

    Raises:
        HeadwiseError: An unknown doc_pool.
    """
    if doc_pool not in DOC_POOL:
        raise HeadwiseError(f"unknown doc_pool {doc_pool!r}; use {' or '.join(DOC_POOL)}")
    masses = np.where(lengths > 0, masses, 0.0)
    pooled = masses / np.maximum(lengths, 1) if doc_pool == "mean" else masses
    total = pooled.sum(axis=-1, keepdims=True)
    heard = (masses.sum(axis=-1, keepdims=True) >= eps) & (total > 0)
    return np.asarray(np.divide(pooled, total, out=np.zeros_like(pooled), where=heard))


def votes(shares: Values, most: int) -> Indices:
    """Union over heads of each head's passages with the largest shares (eq. 4 and 7).

    Args:
        shares: [K, P] of K heads. Among equal shares the first passage wins; a share of 0 is no vote.
        most: Votes per head, at least 1.

    Returns:
        Different indices below P, ascending: at most K * most, fewer where heads agree, none if all shares are 0.

    Raises:
        HeadwiseError: A `most` below 1.
    """
    if most < 1:
        raise HeadwiseError(f"each head votes for at least 1 passage; got {most}")
    best = np.argsort(-shares, axis=-1, kind="stable")[:, :most]
    return np.unique(best[np.take_along_axis(shares, best, axis=-1) > 0])


def relevance(shares: Values) -> Values:
    """Sum of a passage's shares over heads (eq. 5). [K, P] -> [P] in [0, K]."""
    return np.asarray(shares.sum(axis=0))


def ascending(chosen: Sequence[int] | Indices, gamma: Values) -> list[int]:
    """The chosen passages, the most relevant last, next to the question (eq. 6); of equal ones the lowest index comes last."""
    return sorted((int(i) for i in chosen), key=lambda i: (float(gamma[i]), -i))


def margin(gamma: Values, chosen: Sequence[int] | Indices, heads: int) -> float:
    """Relevance of the weakest chosen passage minus that of the strongest other one, per head.

    Ours: the union of votes is not a cut by relevance, so the margin may be negative.

    Args:
        gamma: [P], see `relevance`.
        chosen: Indices below P.
        heads: How many heads gamma sums over, at least 1.

    Returns:
        In [-1, 1]. If all are chosen, the relevance of the weakest; 0 if none is.
    """
    picked = np.zeros(len(gamma), dtype=bool)
    picked[list(chosen)] = True
    if not picked.any():
        return 0.0
    return float(gamma[picked].min() - gamma[~picked].max(initial=0.0)) / heads
