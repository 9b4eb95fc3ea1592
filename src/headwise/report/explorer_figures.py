"""Figures of the explorer: heads of one file, its needle grid, and ablation curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.report.explorer_data import Entry, group_size, head_columns, run_axes
from headwise.report.needle_grid import tabulate
from headwise.report.numbers import capital, count, neutral, noun, scored, shares, thresholds
from headwise.report.page.charts import GRID, Chart, heat_map, lines, scatter
from headwise.report.page.parts import details, figure, figures, section, table
from headwise.report.page.shell import Html, tag
from headwise.report.sweep import Sweep, read_sweep

CELL, LEAST, MOST = 560, 11, 44  # height of a map in pixels, and of one layer
ABLATED = {"top": ("strongest K", "$red"), "random": ("random K", "$grey"), "bottom": ("weakest K", "$blue")}


def map_height(layers: int) -> int:
    """Pixels of a map of so many layers."""
    return layers * max(LEAST, min(MOST, CELL // layers))


def map_chart(entry: Entry, small: bool = False) -> Chart:
    """Layers x heads.

    Args:
        entry: the head file.
        small: for an overview, without axes and without a cursor.
    """
    scores = entry.scores
    layers, heads = scores.shape
    known = scores.values[np.isfinite(scores.values)]
    rest = neutral(scores)
    low, high = (min(rest, float(known.min())), max(rest, float(known.max()))) if known.size else (0.0, 1.0)
    label = f"{capital(scores.score)} scores of {layers} layers by {heads} {noun(scores)}s, {entry.label}"
    height = 132 if small else map_height(layers)
    look: dict[str, Any] = {"legend": False, "axes": False} if small else {"cursor": True, "groups": group_size(scores)}
    name = f"{'overview' if small else 'map'}-{entry.number}"
    return heat_map(
        entry.key,
        head_columns(scores),
        x="head",
        y="layer",
        value="score",
        label=label,
        name=name,
        domain=(low, high if high > low else low + 1),
        height=height,
        **look,
    )


def rank_chart(entry: Entry) -> Chart:
    """Scores from the strongest head down, on a logarithmic axis of ranks."""
    label = f"Scores of {entry.label} from the strongest head down"
    return scatter(
        entry.key,
        head_columns(entry.scores),
        x="rank",
        y="score",
        label=label,
        name=f"ranks-{entry.number}",
        limits=thresholds(entry.scores),
        log_x=True,
        joined=True,
        cursor=("head", "layer"),
    )


def frequency_chart(entry: Entry) -> Chart:
    """Score against the share of runs in which a head is active."""
    return scatter(
        entry.key,
        head_columns(entry.scores),
        x="frequency",
        y="score",
        label=f"Score against activation frequency of {entry.label}",
        name=f"frequency-{entry.number}",
        limits=thresholds(entry.scores),
        x_domain=(0, 1),
        cursor=("head", "layer"),
    )


def runs_chart(entry: Entry) -> Chart:
    """A head's values over its runs; the page fills it in when a head is opened: by length and depth where runs have them."""
    value = f"{capital(entry.scores.score)} score"
    axes = run_axes(entry.scores)
    if axes is None:
        columns = {"run": "Run", "value": value}
        return scatter({"run": [], "value": []}, columns, x="run", y="value", label="Values of the runs", name="runs", height=150)
    depths = sorted(set(axes["depth"]))
    return heat_map(
        {"length": [], "depth": [], "value": [], "runs": []},
        {"length": "Context length (tokens)", "depth": "Needle depth (%)", "value": value, "runs": "Runs"},
        x="length",
        y="depth",
        value="value",
        label="Mean over runs by context length and depth of the needle",
        name="runs",
        domain=_run_domain(entry),
        height=max(90, min(220, 24 * len(depths))),
    )


def _run_domain(entry: Entry) -> tuple[float, float]:
    """From 0 to the highest value of any head in any run, so that heads can be told from one another."""
    runs = entry.scores.runs
    known = runs[np.isfinite(runs)] if runs is not None else np.empty(0)
    low, high = (min(0.0, float(known.min())), max(0.0, float(known.max()))) if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def shares_table(entry: Entry) -> Html:
    """How many heads lie in the ranges of Wu et al.; nothing for scores without thresholds."""
    if not thresholds(entry.scores) or not np.isfinite(entry.scores.values).any():
        return Html()
    rows = [(row.label, row.heads, f"{row.share:.1%}") for row in shares(entry.scores)]
    return details("Heads by range of scores", table(("Score", f"{capital(noun(entry.scores))}s", "Share"), rows, numbers=(1, 2)))


def distribution_section(entry: Entry) -> Html:
    """Ranked scores, and score against frequency where there are runs."""
    scores, drawn = entry.scores, []
    if not np.isfinite(scores.values).any():
        return Html()
    limits = thresholds(scores)
    above = " and ".join(f"{int((scores.values > limit).sum())} are above {limit:g}" for limit in limits)
    drawn.append(
        figure(
            rank_chart(entry),
            f"Of {count(scored(scores).size, noun(scores))} with a score, {above}." if above else "",
            title="Scores by rank",
        )
    )
    if scores.runs is not None and len(scores.runs):
        caption = "Activation frequency: share of the successful runs in which a head scores above 0. A head can be active often and still score low."
        drawn.append(figure(frequency_chart(entry), caption, title="Score against activation frequency"))
    lead = (
        "Each point is a head; click one to open it. Dashed lines: the thresholds of Wu et al. (2024)."
        if limits
        else "Each point is a head; click one to open it."
    )
    return section("Distribution", figures(*drawn), shares_table(entry), lead=lead, id=f"distribution-{entry.number}")


def grid_section(cells: Iterable[Mapping[str, Any]], key: str, title: str = "Needle grid") -> Html:
    """Recall by context length and depth of the needle.

    Args:
        cells: one mapping per run, with length, depth and recall.
        key: tells the section's ids apart from those of other files.
        title: of the section.
    """
    lengths, depths, recall, runs = tabulate(cells)
    rows = [(length, round(100 * depth, 1), i, j) for i, depth in enumerate(depths) for j, length in enumerate(lengths)]
    data: dict[str, list[Any]] = {
        "length": [row[0] for row in rows],
        "depth": [row[1] for row in rows],
        "recall": [None if np.isnan(recall[i, j]) else round(float(recall[i, j]), 4) for *_, i, j in rows],
        "runs": [int(runs[i, j]) for *_, i, j in rows],
    }
    columns = {"length": "Context length (tokens)", "depth": "Needle depth (%)", "recall": "Mean recall", "runs": "Runs"}
    chart = heat_map(
        data,
        columns,
        x="length",
        y="depth",
        value="recall",
        label="Needle recall by context length and depth",
        name=f"grid-{key}",
        domain=(0, 1),
        scheme=GRID,
        numbers=".2f" if len(lengths) <= 12 else None,
        height=max(120, 26 * len(depths)),
    )
    mean = float(np.nansum(recall * runs) / runs.sum())
    caption = f"Mean recall {mean:.2f} over {int(runs.sum())} runs. Depth 0 % is the start of the context. Crossed out: not run."
    return section(
        title,
        figure(chart, caption, width=100 * len(lengths) + 120),
        lead="How much of the answer the model recalls, by context length and by depth of the needle.",
        id=f"grid-{key}",
    )


def ablation_section(result: Mapping[str, Any], label: str, key: str) -> Html:
    """One panel per metric, with the strongest, random and the weakest heads ablated.

    Args:
        result: JSON data of an ablation.
        label: name of the result in the heading.
        key: tells the section's ids apart from those of other files.

    Raises:
        HeadwiseError: the result cannot be shown, see `read_sweep`, or has no row with ablated heads.
    """
    sweep = read_sweep(result)
    drawn = [
        figure(_ablation_chart(sweep, metric, key), title=f"{sweep.name_of(metric)} ({sweep.unit_of(metric)})")
        for metric in sweep.metrics
    ]
    lead = (
        f"{sweep.model} with K heads ablated (mode {sweep.mode}, scope {sweep.scope}), {count(sweep.items, 'item')}. Bands: 95 % confidence "
        f"intervals; for random heads the range of {count(sweep.random_draws, 'draw')}. Dashed line: no ablation."
    )
    return section(f"Ablation: {label}", figures(*drawn), lead=lead, id=f"ablation-{key}")


def _ablation_chart(sweep: Sweep, metric: str, key: str) -> Chart:
    rows: list[dict[str, Any]] = []
    for kind, (name, _) in ABLATED.items():
        for row in sweep.of(metric, kind):
            drawn = kind == "random" and row.draws
            low, high = (min(row.draws), max(row.draws)) if drawn else (row.low, row.high)
            rows.append({"k": row.k, "mean": row.mean, "low": low, "high": high, "heads": name, "p": row.p_paired})
    data = {field: [row[field] for row in rows] for field in ("k", "mean", "low", "high", "heads", "p")}
    ks = sorted({row["k"] for row in rows if row["k"] > 0})
    if not ks:
        raise HeadwiseError(f"the ablation result has no row with ablated heads for {metric}, so there is nothing to draw")
    columns = {"heads": "Heads", "k": "Heads ablated, K", "mean": "Mean", "low": "From", "high": "To", "p": "p, paired"}
    whole = [row.mean for row in sweep.of(metric, "none")[:1]]
    share = metric in ("recall", "exact")
    known = [row["mean"] for row in rows]
    return lines(
        data,
        columns,
        x="k",
        y="mean",
        low="low",
        high="high",
        series="heads",
        log_x=ks[-1] > 10 * ks[0],
        log_y=not share and min(known) > 0 and max(known) > 20 * min(known),
        x_values=ks,
        y_domain=(0, 1) if share else None,
        limits=[float(f"{value:.3g}") for value in whole if math.isfinite(value)],
        colours=dict(ABLATED.values()),
        label=f"{sweep.name_of(metric)} with heads ablated",
        name=f"ablation-{key}-{metric}",
        height=230,
    )


def gallery(entries: Iterable[Entry]) -> Html:
    """A small map per file; the page's script opens a file when its name is chosen."""
    cards = []
    for entry in entries:
        rows, columns = entry.scores.shape
        button = tag("button", entry.label, type="button", data_file=entry.number, aria_pressed="false")
        facts = tag("span", f"{entry.scores.score}, {rows} × {columns}", class_="soft")
        cards.append(tag("div", button, facts, figure(map_chart(entry, small=True), table=False), class_="pick"))
    return section("Files", tag("div", *cards, class_="gallery"), lead="Choose a file to look at its heads.", id="files")
