"""Property 1, universal: every model that answers needle questions has retrieval heads (Wu et al. 2024, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwise_lab.properties.detection import Evidence
from headwise_lab.properties.paper import RETRIEVAL, STRONG
from headwise_lab.properties.verdict import Check, Property, missing, share, span_of

MIN_MODELS = 2


def judge(models: Sequence[Evidence]) -> Property:
    """Main check per model: a head over 0.1. Supporting: one over 0.5, and at least two models."""
    checks: list[Check] = []
    for found in models:
        if found.scores is None:
            without = Check(found.name, "heads over 0.1", "none", "at least 1", False, note=found.why)
            checks.append(without if found.no_heads else missing(found.name, "heads over 0.1", "at least 1", found.why))
            continue
        values = found.scores.values
        over, best = int((values > RETRIEVAL).sum()), float(np.nanmax(values))
        checks.append(Check(found.name, "heads over 0.1", f"{over} of {values.size}", "at least 1", over >= 1))
        checks.append(Check(found.name, "strongest head", f"{best:.2f}", "over 0.5", best > STRONG, main=False))
    known = [found for found in models if found.scores is not None]
    if known:
        rule = f"at least {MIN_MODELS}: one model shows nothing universal"
        checks.append(Check("all", "models measured", str(len(known)), rule, len(known) >= MIN_MODELS, main=False))
    claim = "Every model that finds needles has heads that copy them."
    return Property("universal", "Universal", claim, _line(known, len(models)), checks, {"models": [_row(m) for m in models]})


def _line(known: Sequence[Evidence], total: int) -> str:
    best = [float(np.nanmax(m.scores.values)) for m in known if m.scores is not None]
    having = sum(value > RETRIEVAL for value in best)
    return f"{having} of {total} models; strongest head {span_of(best)}" if best else f"0 of {total} models solved a run"


def _row(found: Evidence) -> dict[str, Any]:
    row: dict[str, Any] = {"name": found.name, "layers": found.shape[0], "heads": found.shape[1], "positions": found.positions}
    if found.scores is None:
        return row | {"why": found.why, "values": None}
    scores, cells = found.scores, found.scores.provenance["cells"]
    over = {limit: int((scores.values > limit).sum()) for limit in (RETRIEVAL, STRONG)}
    return row | {
        "runs": scores.provenance["runs"],
        "solved": scores.provenance["solved"],
        "solved_share": share(scores.provenance["solved"] / scores.provenance["runs"]),
        "recall": float(np.mean([cell["recall"] for cell in cells])),
        "exact": float(np.mean([cell["exact"] for cell in cells])),
        "lengths": list(scores.provenance["grid"]["lengths"]),
        "over_0.1": over[RETRIEVAL],
        "over_0.5": over[STRONG],
        "top": [{"head": str(head), "score": float(scores.values[head])} for head in scores.ranking()[:10]],
        "values": scores.values.tolist(),
    }
