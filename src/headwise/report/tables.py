"""Results as text: the strongest heads, what the whole table of scores says, and an ablation sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, HeadScores, Scores
from headwise.report.canvas import subject
from headwise.report.numbers import capital, count, interval, layer_kind, noun, scored, thresholds
from headwise.report.sweep import METRICS, Row, Sweep, read_sweep
from headwise.stats.agreement import gini, split_half_reliability, split_half_top_overlap

NAMED = 8
"""At most so many always-on heads are listed by name, and so many of the strongest are compared between halves of the runs."""
UNKNOWN = "–"
SHORT = {"recall": "Recall", "exact": "Exact", "logprob": "Log-prob.", "perplexity": "Perplexity"}
SHORT |= {"context_memory": "In-context: memory", "context_passage": "In-context: passage"}
SHORT |= {"memory_memory": "Parametric: memory", "memory_passage": "Parametric: passage"}


def head_table(scores: HeadScores, top: int = 10) -> Table:
    """The strongest heads with their score, its 95 % interval over runs, and activation frequency.

    Args:
        scores: at least one head is scored.
        top: how many to list, at least 1; all if there are fewer.

    Raises:
        HeadwiseError: a `top` below 1, or scores that rank nothing, see `HeadScores.ranking`.
    """
    if top < 1:
        raise HeadwiseError(f"the number of heads to list must be at least 1; got {top}")
    table = titled_table(f"Strongest {noun(scores)}s by {scores.score} score", subject(scores.provenance))
    table.add_column("Rank", justify="right")
    table.add_column(capital(noun(scores)))
    for name in (f"{capital(scores.score)} score", "95 % CI over runs", "Active in runs"):
        table.add_column(name, justify="right")
    table.add_column("Layer")
    frequency = scores.frequency if _has_runs(scores) else None
    for rank, head in enumerate(scores.ranking()[:top], start=1):
        active = UNKNOWN if frequency is None else f"{frequency[head]:.0%}"
        ci = _bounds(interval(_runs_of(scores, head)))
        table.add_row(str(rank), str(head), f"{scores.values[head]:.3f}", ci, active, layer_kind(scores, head.layer))
    return table


def summary_lines(scores: HeadScores) -> list[str]:
    """Shape, tables, sparsity, concentration, reliability, solved runs and always-on heads, one line each; only what the file can tell."""
    known = scored(scores)
    lines = [
        f"{scores.score} scores of {count(known.size, noun(scores))} ({count(scores.shape[0], 'layer')} × {scores.shape[1]})"
    ]
    if known.size < scores.values.size:
        lines[0] += f", {scores.values.size - known.size} not scored"
    if scores.provenance.get("shape_guessed"):
        way_out = "state the model's: headwise convert FILE NEW.json --shape LAYERSxHEADS"
        lines.append(f"the shape is a guess from the heads that the file lists; {way_out}")
    if scores.tables:
        lines.append("tables: " + ", ".join(f"{name} {_axes_of(table, scores)}" for name, table in scores.tables.items()))
    for limit in thresholds(scores):
        above = int((known > limit).sum())
        lines.append(f"above {limit:g}: {count(above, noun(scores))} ({above / known.size:.1%})")
    if known.min() >= 0 and known.max() > 0:
        lines.append(f"Gini {gini(known):.3f} (0: all {noun(scores)}s score the same; 1: one {noun(scores)} has the whole score)")
    else:
        lines.append(f"Gini not defined: {'some scores are below' if known.min() < 0 else 'all scores are'} 0")
    if scores.runs is None or len(scores.runs) == 0:
        return [*lines, "no per-run values: reliability and activation frequency are unknown"]
    reliability = split_half_reliability(scores.runs)
    halves = f"mean correlation of random halves of {count(len(scores.runs), 'run')}"
    lines.append(f"split-half reliability {_number(reliability)} ({halves})")
    if len(scores.runs) > 1 and known.size >= 4 * NAMED:
        lines.append(f"strongest {NAMED}: two random halves share {split_half_top_overlap(scores.runs, NAMED):.0%} of them")
    if (rule := scores.provenance.get("rule")) is not None:
        lines.append(f"rule {rule} over {count(len(scores.runs), 'labelled text')}")
    if dropped := scores.provenance.get("records_dropped"):
        lines.append("left out: " + ", ".join(f"{number} where {reason}" for reason, number in dropped.items()))
    if notice := scores.provenance.get("notice"):
        lines.append(str(notice))
    if (total := scores.provenance.get("runs")) is not None:
        solved = int(scores.provenance.get("solved", len(scores.runs)))
        lines.append(f"{solved} of {count(int(total), 'run')} solved ({solved / max(int(total), 1):.1%})")
    if thresholds(scores):
        lines.append(_always_on(scores))
    return lines


def ablation_table(result: Mapping[str, Any]) -> Table:
    """One line per metric and K: top K, random K and bottom K, and how surprising the top is; K = 0 is the whole model."""
    sweep = read_sweep(result)
    table = titled_table(f"Ablating heads: mode {sweep.mode}, scope {sweep.scope}, {sweep.items} items", sweep.model)
    table.collapse_padding = True  # fits into 80 columns
    table.add_column("Metric")
    for name in ("K", "Top", "95 % CI", "Random ± sd", "Bottom", "p paired", "p rank"):
        table.add_column(name, justify="right")
    for metric in sweep.metrics:
        _add_metric(table, sweep, metric)
    table.caption = (
        f"K = 0: no ablation. {sweep.random_draws} random draws per K.\n"
        "p paired: top against the mean random draw, over items; p rank: top among the draws."
    )
    if sweep.name_of("perplexity") != METRICS["perplexity"] and "perplexity" in sweep.metrics:
        table.caption += f"\n{sweep.name_of('perplexity')}: {sweep.unit_of('perplexity')}."
    return table


def _add_metric(table: Table, sweep: Sweep, metric: str) -> None:
    kinds = {kind: {row.k: row for row in sweep.of(metric, kind)} for kind in ("none", "top", "random", "bottom")}
    label = SHORT[metric]
    for k in sorted({k for rows in kinds.values() for k in rows}):
        top, random, bottom = (kinds[kind].get(k) for kind in ("top" if k else "none", "random", "bottom"))
        numbers = (_mean(top), _row_bounds(top), _with_spread(random), _mean(bottom), _p(top, "p_paired"), _p(top, "p_rank"))
        table.add_row(label, str(k), *numbers)
        label = ""


def titled_table(title: str, source: str) -> Table:
    """An empty table; the source is shown as it is, never read as markup."""
    lines = Text(title, style="bold")
    if source:
        lines.append(f"\n{source}", style="not bold")
    return Table(title=lines, title_justify="left", caption_justify="left", box=None, header_style="bold", pad_edge=False)


def _axes_of(table: Scores, scores: HeadScores) -> str:
    if table.ndim == 1:
        return "[layer]"
    return f"[layer, {noun(scores)}]" if table.shape == scores.shape else "[layer, KV head]"


def _has_runs(scores: HeadScores) -> bool:
    return scores.runs is not None and len(scores.runs) > 0


def _runs_of(scores: HeadScores, head: HeadId) -> NDArray[np.floating]:
    return np.empty(0) if scores.runs is None else scores.runs[:, head.layer, head.head]


def _always_on(scores: HeadScores) -> str:
    heads = [str(HeadId(int(layer), int(head))) for layer, head in np.argwhere(scores.frequency == 1)]
    named = ", ".join(heads[:NAMED]) + (f" and {len(heads) - NAMED} more" if len(heads) > NAMED else "")
    return f"always on (active in every successful run): {count(len(heads), noun(scores))}" + (f": {named}" if heads else "")


def _number(value: float) -> str:
    if math.isnan(value):
        return "not defined"
    size = abs(value)
    return f"{value:.3f}" if size < 100 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}" if size < 1e6 else f"{value:.2e}"


def _bounds(bounds: tuple[float, float] | None) -> str:
    return UNKNOWN if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"


def _mean(row: Row | None) -> str:
    return UNKNOWN if row is None else _number(row.mean)


def _row_bounds(row: Row | None) -> str:
    return UNKNOWN if row is None or row.low is None or row.high is None else _bounds((row.low, row.high))


def _with_spread(row: Row | None) -> str:
    return _mean(row) if row is None or row.sd_draws is None else f"{_number(row.mean)} ± {_number(row.sd_draws)}"


def _p(row: Row | None, name: str) -> str:
    value = None if row is None else getattr(row, name)
    return UNKNOWN if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
