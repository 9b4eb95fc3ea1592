"""Property 2, sparse: few heads have a high score (Wu et al. 2024, sec. 3.2 and fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwise.heads import HeadScores
from headwise.report.numbers import shares
from headwise.stats.agreement import gini
from headwise_lab.properties.detection import Evidence
from headwise_lab.properties.paper import DISTRIBUTIONS, MOST_OVER, RETRIEVAL, STRONG
from headwise_lab.properties.verdict import Check, Property, missing, share, span_of

CONCENTRATED = 0.5  # Gini coefficient; 0 = all heads alike


def judge(models: Sequence[Evidence]) -> Property:
    """Main checks per model: at most the paper's largest share over 0.1; and, weaker, a minority with most of the score."""
    checks: list[Check] = []
    published, minority = f"at most {100 * MOST_OVER:.1f} % (most in the paper's models)", "fewer than half, Gini over 0.5"
    for found in models:
        if found.scores is None:
            checks.append(missing(found.name, "share of heads over 0.1", published, found.why))
            continue
        values = found.scores.values[~np.isnan(found.scores.values)]
        over, concentration = float((values > RETRIEVAL).mean()), gini(values)
        checks.append(Check(found.name, "share of heads over 0.1", share(over, 1), published, over <= MOST_OVER))
        text = f"{share(over, 1)}, Gini {concentration:.2f}"
        checks.append(Check(found.name, "a concentrated minority", text, minority, over < 0.5 and concentration > CONCENTRATED))
    rows = [_row(found.name, found.scores) for found in models if found.scores is not None]
    claim = "Only a few heads copy: less than about 5 % have a score over 0.1."
    line = "nothing could be measured"
    if rows:
        line = f"{_percent(rows, 'over_0.1')} of heads over 0.1, {_percent(rows, 'over_0.5')} over 0.5"
    notes = [
        "A lab model has 64 heads and was trained to copy; one head is already 1.6 % of them, so the published 0.1 to 0.7 % over 0.5 "
        "cannot be met by a model with any strong head."
    ] * any(not found.model.real for found in models)
    return Property("sparse", "Sparse", claim, line, checks, {"models": rows, "paper": _paper()}, notes)


def _percent(rows: Sequence[dict[str, Any]], name: str) -> str:
    return span_of([100 * row[name] for row in rows], 1) + " %"


def _row(name: str, scores: HeadScores) -> dict[str, Any]:
    known = np.sort(scores.values[~np.isnan(scores.values)])[::-1]
    return {
        "name": name,
        "heads": int(known.size),
        "bins": [bin.share for bin in shares(scores)],
        "counts": [bin.heads for bin in shares(scores)],
        "over_0.1": float((known > RETRIEVAL).mean()),
        "over_0.5": float((known > STRONG).mean()),
        "gini": gini(known),
        "ranked": known.tolist(),
    }


def _paper() -> list[dict[str, Any]]:
    return [
        {
            "name": model.name,
            "heads": model.heads,
            "bins": [part / 100 for part in (model.zero, model.below, model.middle, model.strong)],
            "over_0.1": model.over / model.heads,
        }
        for model in DISTRIBUTIONS
    ]
