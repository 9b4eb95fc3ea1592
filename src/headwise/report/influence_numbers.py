"""The numbers that the page of a scored corpus shows: densities, quantiles and points of a sample. Plain numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
BINS = 60
POINTS = 1500  # of a scatter, over all domains
EXCERPT = 600  # characters
Samples = Mapping[str, Mapping[str, Any]]


def densities(samples: Samples) -> dict[str, list[Any]]:
    """The share of each domain's sampled documents per bin of score, as columns `domain`, `score` and `share`.

    Bins are equally wide over the range that holds 99 % of each domain (half a per cent at each end); what lies outside is in the outermost bins.
    """
    values = {name: np.asarray(sample["score"], dtype=np.float64) for name, sample in samples.items() if len(sample["score"])}
    if not values:
        return {"domain": [], "score": [], "share": []}
    low = min(float(np.quantile(v, 0.005)) for v in values.values())
    high = max(float(np.quantile(v, 0.995)) for v in values.values())
    bins = int(np.clip(np.sqrt(max(map(len, values.values()))), 8, BINS))
    edges = np.linspace(low, high if high > low else low + 1e-6, bins + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    columns: dict[str, list[Any]] = {"domain": [], "score": [], "share": []}
    for name, scores in values.items():
        counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
        columns["domain"] += [named(name)] * bins
        columns["score"] += [round(m, 6) for m in middles]
        columns["share"] += [round(float(c), 6) for c in counts / len(scores)]
    return columns


def quantile_rows(samples: Samples) -> list[list[object]]:
    """Per domain: its name, how many documents the numbers are of, and the score at each of `QUANTILES`."""
    rows: list[list[object]] = []
    for name, sample in samples.items():
        scores = np.asarray(sample["score"], dtype=np.float64)
        found = np.quantile(scores, QUANTILES) if len(scores) else [float("nan")] * len(QUANTILES)
        rows.append([named(name), f"{len(scores):,}", *(number(float(value)) for value in found)])
    return rows


def points(samples: Samples, most: int = POINTS) -> dict[str, list[Any]]:
    """Documents for a scatter plot, evenly taken from those given of each domain.

    Args:
        samples: domain -> columns of its sampled documents.
        most: documents in all, at most (but one of each domain).

    Returns:
        Columns `domain`, `tokens`, `score`, `loss` (nats) and `chosen`, equally many documents of each domain where there are so
        many.
    """
    each = max(1, most // max(1, len(samples)))
    columns: dict[str, list[Any]] = {"domain": [], "tokens": [], "score": [], "loss": [], "chosen": []}
    for name, sample in samples.items():
        order = _spread(len(sample["score"]), each)
        columns["domain"] += [named(name)] * len(order)
        columns["tokens"] += [int(n) for n in np.asarray(sample["n_tokens"])[order]]
        columns["score"] += [round(float(s), 5) for s in np.asarray(sample["score"])[order]]
        columns["loss"] += [round(float(s), 4) for s in np.asarray(sample["loss_base"])[order]]
        columns["chosen"] += ["chosen" if c else "not chosen" for c in np.asarray(sample["chosen"])[order]]
    return columns


def mean_tokens(samples: Samples, name: str) -> tuple[float | None, float | None]:
    """Mean length of the sampled documents of a domain, in tokens.

    Args:
        samples: domain -> columns of its sampled documents.
        name: of the domain.

    Returns:
        Of all ranked ones, and of the chosen ones; None where there are none.
    """
    if name not in samples:
        return None, None
    tokens, chosen = np.asarray(samples[name]["n_tokens"]), np.asarray(samples[name]["chosen"], dtype=bool)
    return float(tokens.mean()), float(tokens[chosen].mean()) if chosen.any() else None


def named(domain: str) -> str:
    """A domain as it is shown."""
    return domain or "(no domain)"


def number(value: float | None, form: str = ".4f") -> str:
    """A number as it is shown; a dash for None and NaN."""
    return "–" if value is None or value != value else format(value, form)


def excerpt(text: str | None, most: int = EXCERPT) -> str:
    """The beginning and the end of a text in at most about `most` characters, white space as it is."""
    if text is None:
        return "(the text could not be read)"
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} […] {text[-half:]}"


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0 ... count - 1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.empty(0, np.int64)
