"""From the relevance of heads to the scores of the Atlas (Kahardipraja et al. 2025, arXiv:2505.15807). Plain numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

Values = NDArray[np.float64]
NORMALIZE = ("none", "logit", "share")


def normalized(relevance: Values, logits: Values, normalize: str) -> Values:
    """Contributions of heads, made comparable between prompts.

    Args:
        relevance: [N, L, H], R_h of each record; NaN = no head there.
        logits: [N], the logits that were explained, none of them 0.
        normalize: `none`; `logit`: divided by the size of the logit; `share`: divided by the sum over all heads, so that each record's
            contributions sum to 1 (ours: the paper does not say how it normalizes, its numbers are far below logits).

    Returns:
        [N, L, H] in the same places.

    Raises:
        HeadwiseError: An unknown `normalize`.
    """
    if normalize not in NORMALIZE:
        raise HeadwiseError(f"unknown normalize {normalize!r}; use {', '.join(NORMALIZE)}")
    if normalize == "none":
        return relevance
    size = np.abs(logits) if normalize == "logit" else np.nansum(relevance, axis=(1, 2))
    return np.asarray(relevance / size[:, None, None])


def in_context_scores(opened: Values, closed: Values) -> Values:
    """D of each record: the contribution with a swapped passage minus that without any (section 3.2 of our card; D^h of the paper).

    Args:
        opened: [N, L, H], contributions to the swapped answer with the swapped passage in front of the question.
        closed: [N, L, H], contributions to the right answer of the question alone.

    Returns:
        [N, L, H]: above 0 for heads that serve the context, below 0 for heads that serve memory. The paper's D is the mean over records.
    """
    return np.asarray(opened - closed)


def span_relevance(sources: Values, spans: Iterable[tuple[int, int]]) -> Values:
    """The rho of a set of source tokens: what a head takes from all of them (the paper's task and retrieval relevance).

    Args:
        sources: [L, H, S], relevance of attention weights per source token.
        spans: Token positions [start, stop); none overlap.

    Returns:
        [L, H].
    """
    parts = [sources[..., start:stop].sum(axis=-1) for start, stop in spans]
    return np.sum(parts, axis=0) if parts else np.zeros(sources.shape[:2])


def standard_error(runs: Values) -> Values:
    """Standard error of the mean over records.

    Args:
        runs: [N, L, H].

    Returns:
        [L, H]; NaN for a single record.
    """
    if len(runs) < 2:
        return np.full(runs.shape[1:], np.nan)
    return np.asarray(runs.std(axis=0, ddof=1) / np.sqrt(len(runs)))
