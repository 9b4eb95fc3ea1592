"""From one number per position to sources: Kahardipraja et al. 2025 (arXiv:2505.15807, sec. 6).

A row that predicts token t scores position j by `sum_h w_h * ell_h(t) * A_h[row, j]`: how much each head says t, times how much the probe
trusts the head, times where it looks. Weights may be negative, and so may scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.prompts.prompt import Prompt, Span

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
LABELS = ("read", "remembered", "unsure")
PASSAGE = "passage/"


def passages_of(prompt: Prompt) -> dict[str, Span]:
    """The prompt's passages in their order: spans called `passage/...`.

    Raises:
        HeadwiseError: There is none.
    """
    found = {name: span for name, span in prompt.spans.items() if name.startswith(PASSAGE)}
    if not found:
        raise HeadwiseError(
            "the prompt has no documents, so there is no passage to trace an answer to; give --question and --documents"
        )
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def allowed_positions(prompt: Prompt, special: Iterable[int]) -> Flags:
    """Positions that can be a source: the text of the passages if there are any, else all.

    Never special tokens, and never the first position, on which heads rest (the attention sink).

    Args:
        prompt: The prompt of P tokens.
        special: Ids of control tokens.

    Returns:
        [P] bool.
    """
    spans = [span for name, span in prompt.spans.items() if name.startswith(PASSAGE)]
    allowed = np.zeros(len(prompt.ids), dtype=bool)
    for span in spans or [Span(0, len(prompt.ids))]:
        allowed[span.start : span.stop] = True
    allowed[np.isin(prompt.ids, list(special))] = False
    allowed[0] = False
    return allowed


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
