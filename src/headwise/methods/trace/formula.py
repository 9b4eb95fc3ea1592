"""From one number per position to sources: Kahardipraja et al. 2025 (arXiv:2505.15807, sec. 6).

A row that predicts token t scores position j by `sum_h w_h * ell_h(t) * A_h[row, j]`: how much each head says t, times how much the probe
trusts the head, times where it looks. Weights may be negative, and so may scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headwise.prompts.prompt import Span

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
LABELS = ("read", "remembered", "unsure")


def passage_scores(scores: Values, allowed: Flags, spans: Mapping[str, Span]) -> dict[str, float]:
    """Sum of the scores of each passage's allowed positions.

    Args:
        scores: [P].
        allowed: [P].
        spans: Name -> passage.
    """
    kept = np.where(allowed, scores, 0.0)
    return {name: float(kept[span.start : span.stop].sum()) for name, span in spans.items()}


def label_of(probability: float, band: tuple[float, float]) -> str:
    """`read` above the band, `remembered` below it, `unsure` inside."""
    return "read" if probability > band[1] else "remembered" if probability < band[0] else "unsure"
