"""Rows of an ablation result, checked once, for the figure and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from headwise.core.errors import HeadwiseError

METRICS = {
    "recall": "Unigram recall",
    "exact": "Exact match",
    "logprob": "Gold log-probability",
    "perplexity": "Perplexity",
}
UNITS = {"recall": "share of words", "exact": "share of items", "logprob": "nats", "perplexity": "per token"}
KINDS = ("none", "top", "bottom", "random")


@dataclass(frozen=True)
class Row:
    """One metric under one ablation. mean: NaN if not defined. low, high: confidence interval. draws: one mean per draw."""

    metric: str
    kind: str
    k: int
    mean: float
    low: float | None = None
    high: float | None = None
    sd_draws: float | None = None
    draws: tuple[float, ...] = ()
    p_paired: float | None = None
    p_rank: float | None = None


@dataclass(frozen=True)
class Sweep:
    """A whole ablation result."""

    mode: str
    scope: str
    model: str
    items: int
    rows: tuple[Row, ...]

    @property
    def metrics(self) -> list[str]:
        """The metrics that were measured, in the order in which they are shown."""
        return [m for m in METRICS if any(row.metric == m for row in self.rows)]

    @property
    def random_draws(self) -> int:
        """Draws of the random control (the most over all K)."""
        return max((len(row.draws) for row in self.rows), default=0)

    def of(self, metric: str, kind: str) -> list[Row]:
        """Rows of one metric and kind with a mean, by ascending K."""
        found = [r for r in self.rows if (r.metric, r.kind) == (metric, kind) and not math.isnan(r.mean)]
        return sorted(found, key=lambda r: r.k)


def read_sweep(result: Mapping[str, Any]) -> Sweep:
    """Check an ablation result. Raises `HeadwiseError` for one that cannot be shown."""
    try:
        rows = tuple(_row(row) for row in result["summary"])
        sweep = Sweep(str(result["mode"]), str(result["scope"]), str(result["model"]), int(result["items"]), rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadwiseError(f"this is no ablation result ({error!r}); give the JSON that the ablation wrote") from error
    if all(math.isnan(row.mean) for row in sweep.rows):
        raise HeadwiseError("the ablation result has no measured row, so there is nothing to show")
    return sweep


def _row(data: Mapping[str, Any]) -> Row:
    known = {f.name: data[f.name] for f in fields(Row) if f.name in data}
    mean = math.nan if data["mean"] is None else data["mean"]
    row = Row(**known | {"mean": mean, "draws": tuple(data.get("draws") or ())})
    if row.metric not in METRICS or row.kind not in KINDS:
        raise ValueError(f"unknown metric or kind: {row.metric}, {row.kind}")
    for number in (row.k, row.mean, row.low, row.high, row.sd_draws, row.p_paired, row.p_rank, *row.draws):
        if number is not None and not isinstance(number, int | float):
            raise ValueError(f"{number!r} is no number")
    return row
