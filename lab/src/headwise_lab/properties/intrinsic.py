"""Property 3, intrinsic: a continued model keeps the retrieval heads of its base (Wu et al. 2024, sec. 3.3).

Head numbers mean nothing across separately trained models, so those are the control. The ceiling of a correlation is what the noise of both
score maps leaves of 1: the root of the product of their reliabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from headwise.heads import HeadScores
from headwise.stats.agreement import pearson, split_half_reliability, top_overlap
from headwise_lab.properties.detection import Evidence
from headwise_lab.properties.lab_models import EXTENDED, FAMILY, RELATIONS, SEED, relation
from headwise_lab.properties.paper import PEARSON, SAME_FAMILY
from headwise_lab.properties.verdict import Check, Property, missing, span_of

# Chance correlations of 64 heads have a standard deviation of 0.13, so the paper's 0.1 for 1,024 heads cannot be asked of them.
UNRELATED = 0.3
SHUFFLES = 1000
TOP = 8
MIN_NEEDLES = 4


def reliability(found: Evidence, seed: int) -> float:
    """Expected correlation with a map from as many other needles: halves of the needles, corrected to full length.

    The correction is Spearman and Brown's, 2 r / (1 + r) of the correlation r of two halves.

    Args:
        found: A model with its scores.
        seed: Of the halves.

    Returns:
        At most 1; NaN below `MIN_NEEDLES` needles.
    """
    runs = found.needle_runs
    if len(runs) < MIN_NEEDLES:
        return float("nan")
    half = split_half_reliability(runs, seed=seed)
    return 2 * half / (1 + half)


def judge(models: Sequence[Evidence], seed: int) -> Property:
    """Main check: base against continuation over 0.8. Supporting: other seed and other architecture within ±0.3."""
    known = [found for found in models if found.scores is not None]
    steady = {found.name: reliability(found, seed) for found in known}
    pairs = [_pair(a, b, steady, seed) for a, b in combinations(known, 2) if a.shape == b.shape]
    checks = [check for pair in pairs for check in _checks(pair)]
    if not any(pair["relation"] == EXTENDED for pair in pairs):
        checks.insert(
            0, missing("all", "base against its continuation", _rule(EXTENDED), "no base and continuation were both measured")
        )
    notes = [f"{relation}: {RELATIONS[relation]}" for relation in dict.fromkeys(pair["relation"] for pair in pairs)]
    long = _long(known)
    notes += [
        f"{row['name']} in contexts of {' and '.join(map(str, row['lengths']))} tokens ({row['solved']} of {row['runs']} runs solved): Pearson "
        f"{row['pearson']:.2f} with its own map in short ones"
        for row in long
    ]
    data = {
        "pairs": pairs,
        "reliability": {name: None if value != value else value for name, value in steady.items()},
        "scatter": _scatter(known),
        "long": long,
        "paper": [{"name": name, "pearson": value, "source": source} for name, value, source in PEARSON],
    }
    claim = "A model that is continued on longer contexts uses the retrieval heads of its base."
    return Property("intrinsic", "Intrinsic", claim, _line(pairs), checks, data, notes)


def shuffled_range(a: HeadScores, b: HeadScores, seed: int) -> tuple[float, float]:
    """95 % range of the correlation when heads are shuffled inside each layer: what layers alone explain, plus chance.

    Args:
        a: Scores that stay.
        b: Scores that are shuffled, of the same shape.
        seed: Of the shuffles.
    """
    rng = np.random.default_rng([seed, 31])
    found = [pearson(a.values, rng.permuted(b.values, axis=1)) for _ in range(SHUFFLES)]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def _pair(a: Evidence, b: Evidence, steady: dict[str, float], seed: int) -> dict[str, Any]:
    if a.scores is None or b.scores is None:
        return {}
    ceiling = float(np.sqrt(max(0.0, steady[a.name] * steady[b.name])))
    return {
        "a": a.name,
        "b": b.name,
        "relation": relation(a.model, b.model),
        "pearson": pearson(a.scores.values, b.scores.values),
        "ceiling": None if ceiling != ceiling else ceiling,
        "shuffled": shuffled_range(a.scores, b.scores, seed),
        "layers": pearson(np.nanmean(a.scores.values, axis=1), np.nanmean(b.scores.values, axis=1)),
        "top_overlap": top_overlap(a.scores.values, b.scores.values, TOP),
    }


def _rule(kind: str) -> str:
    return f"Pearson over {SAME_FAMILY:g}" if kind == EXTENDED else f"Pearson within ±{UNRELATED:g}"


def _checks(pair: dict[str, Any]) -> list[Check]:
    kind, value = pair["relation"], pair["pearson"]
    if kind not in (EXTENDED, SEED, FAMILY):
        return []
    name = f"{pair['a']} / {pair['b']}"
    holds = value > SAME_FAMILY if kind == EXTENDED else abs(value) < UNRELATED
    return [Check(name, kind, f"{value:.2f}", _rule(kind), holds, main=kind == EXTENDED)]


def _line(pairs: Sequence[dict[str, Any]]) -> str:
    parts = []
    for kind in (EXTENDED, SEED, FAMILY):
        values = [pair["pearson"] for pair in pairs if pair["relation"] == kind]
        if values:
            parts.append(f"{kind} {span_of(values)}")
    return "Pearson: " + ", ".join(parts) if parts else "no pair of models to compare"


def _scatter(known: Sequence[Evidence]) -> dict[str, Any] | None:
    """Scores of all heads of the first base and continuation."""
    for a, b in combinations(known, 2):
        if relation(a.model, b.model) == EXTENDED and a.shape == b.shape and a.scores is not None and b.scores is not None:
            return {"a": a.name, "b": b.name, "x": a.scores.values.ravel().tolist(), "y": b.scores.values.ravel().tolist()}
    return None


def _long(known: Sequence[Evidence]) -> list[dict[str, Any]]:
    """The continued model at its own lengths against itself at short ones."""
    return [
        {
            "name": found.name,
            "lengths": list(found.own_lengths.provenance["grid"]["lengths"]),
            "runs": found.own_lengths.provenance["runs"],
            "solved": found.own_lengths.provenance["solved"],
            "pearson": pearson(found.scores.values, found.own_lengths.values),
        }
        for found in known
        if found.own_lengths is not None and found.scores is not None
    ]
