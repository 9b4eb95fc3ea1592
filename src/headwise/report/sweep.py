"""Rows of an ablation result, checked once, for the figure and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import reason
from headwise.report.numbers import count, public_name

METRICS = {
    "recall": "Unigram recall",
    "exact": "Exact match",
    "logprob": "Gold log-probability",
    "perplexity": "Perplexity",
    "context_memory": "In-context heads: remembered answer",
    "context_passage": "In-context heads: passage's answer",
    "memory_memory": "Parametric heads: remembered answer",
    "memory_passage": "Parametric heads: passage's answer",
}
UNITS = {"recall": "share of words", "exact": "share of items", "logprob": "nats per gold answer", "perplexity": "plain text"}
UNITS |= dict.fromkeys(("context_memory", "context_passage", "memory_memory", "memory_passage"), "share of questions")
SHARES = (*(name for name, unit in UNITS.items() if unit.startswith("share")),)  # metrics between 0 and 1
KINDS = ("none", "top", "bottom", "random")


@dataclass(frozen=True)
class Row:
    """One metric under one ablation.

    Attributes:
        metric: one of `METRICS`.
        kind: one of `KINDS`.
        k: number of ablated heads.
        mean: over items; NaN if not defined.
        low: lower end of the 95 % confidence interval.
        high: upper end.
        sd_draws: standard deviation over the draws of random heads.
        draws: one mean per draw of random heads; draws without a value are left out.
        p_paired: of the strongest heads against the mean random draw, over items.
        p_rank: rank of the strongest heads among the draws.
    """

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
    """A whole ablation result.

    Attributes:
        mode: zero, uniform or mean.
        scope: answer or all.
        model: its name.
        items: questions that every row is a mean of.
        rows: metric by metric.
        perplexity_scope: where heads were ablated for perplexity, if that was noted.
    """

    mode: str
    scope: str
    model: str
    items: int
    rows: tuple[Row, ...]
    perplexity_scope: str | None = None

    @property
    def metrics(self) -> list[str]:
        """The metrics that were measured, in the order in which they are shown."""
        return [m for m in METRICS if any(row.metric == m for row in self.rows)]

    @property
    def random_draws(self) -> int:
        """Draws of the random control (the most over all metrics and K)."""
        return max((len(row.draws) for row in self.rows), default=0)

    def name_of(self, metric: str) -> str:
        """The metric's name, with its own scope if that differs from the sweep's."""
        differs = metric == "perplexity" and self.perplexity_scope not in (None, self.scope)
        return METRICS[metric] + (f", scope {self.perplexity_scope}" if differs else "")

    def unit_of(self, metric: str) -> str:
        """The metric's unit, with its own number of random draws if that differs from the sweep's."""
        draws = max((len(row.draws) for row in self.rows if row.metric == metric), default=0)
        return UNITS[metric] + (f", {count(draws, 'draw')}" if draws not in (0, self.random_draws) else "")

    def of(self, metric: str, kind: str) -> list[Row]:
        """Rows of one metric and kind with a mean, by ascending K."""
        found = [r for r in self.rows if (r.metric, r.kind) == (metric, kind) and math.isfinite(r.mean)]
        return sorted(found, key=lambda r: r.k)


def read_sweep(result: Mapping[str, Any]) -> Sweep:
    """Check an ablation result.

    Args:
        result: its JSON data.

    Returns:
        The sweep, with NaN for means that are null.

    Raises:
        HeadwiseError: it cannot be shown.
    """
    try:
        rows = tuple(_row(row) for row in result["summary"])
        scope = (result.get("perplexity") or {}).get("scope")
        sweep = Sweep(str(result["mode"]), str(result["scope"]), public_name(result["model"]), int(result["items"]), rows, scope)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadwiseError(f"this is no ablation result ({reason(error)}); give the JSON that the ablation wrote") from error
    if not any(math.isfinite(row.mean) for row in sweep.rows):
        raise HeadwiseError("the ablation result has no measured row, so there is nothing to show")
    return sweep


def _row(data: Mapping[str, Any]) -> Row:
    known = {f.name: data[f.name] for f in fields(Row) if f.name in data}
    mean = math.nan if data["mean"] is None else data["mean"]
    row = Row(**known | {"mean": mean, "draws": tuple(d for d in data.get("draws") or () if d is not None)})
    if row.metric not in METRICS or row.kind not in KINDS:
        raise ValueError(f"unknown metric or kind: {row.metric}, {row.kind}")
    if not isinstance(row.k, Integral):
        raise ValueError(f"{row.k!r} is no number of heads")
    for number in (row.mean, row.low, row.high, row.sd_draws, row.p_paired, row.p_rank, *row.draws):
        if number is not None and not isinstance(number, int | float):
            raise ValueError(f"{number!r} is no number")
    return row
