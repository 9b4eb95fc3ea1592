"""What ablating K heads costs: the strongest heads against random and against the weakest ones, one panel per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise.report.canvas import (
    BLUE,
    GREY,
    INK,
    RED,
    add_legend,
    new_figure,
    set_title,
    spaced,
    style,
    write_figure,
)
from headwise.report.sweep import SHARES, Row, Sweep, read_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP, BOTTOM, RANDOM, NONE = "top K heads, 95 % CI", "bottom K heads, 95 % CI", "random K heads, range of draws", "no ablation"
SHOWN = (TOP, RANDOM, BOTTOM, NONE)
PANEL = (3.7, 2.7)
BAND = 0.25


def ablation_curves(result: Mapping[str, Any], path: Path) -> None:
    """Write an ablation sweep, metric against number of heads.

    Args:
        result: the JSON data of the ablation.
        path: of the picture.
    """
    write_figure(lambda: draw_ablation_curves(result), path)


def draw_ablation_curves(result: Mapping[str, Any]) -> Figure:
    """Small multiples, metric against K: top, bottom, random control with its draws, and the unablated model as a dashed line."""
    from matplotlib.patches import Patch

    sweep = read_sweep(result)
    columns = min(2, len(sweep.metrics))
    rows = -(-len(sweep.metrics) // columns)
    width = max(5.4, columns * PANEL[0])
    figure = new_figure(width, rows * PANEL[1] + 1.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(sweep.metrics) :]:
        axes.set_visible(False)
    for axes, metric in zip(panels, sweep.metrics, strict=False):
        _draw_panel(axes, sweep, metric, width / columns - 0.9)
    figure.align_ylabels()
    keys = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if RANDOM in keys:
        keys[RANDOM] = (Patch(facecolor=GREY, alpha=BAND), keys[RANDOM])
    add_legend(figure, {label: keys[label] for label in SHOWN if label in keys})
    what = f"Ablating heads: mode {sweep.mode}, scope {sweep.scope}"
    set_title(figure, sweep.model, what, f"{sweep.items} items, {sweep.random_draws} random draws per K")
    return figure


def _draw_panel(axes: Axes, sweep: Sweep, metric: str, inches: float) -> None:
    for row in sweep.of(metric, "none")[:1]:
        axes.axhline(row.mean, color=INK, linestyle="--", linewidth=1.2, label=NONE, zorder=1)
    random = sweep.of(metric, "random")
    if random:
        draw_random(axes, random)
    draw_line(axes, sweep.of(metric, "bottom"), BLUE, "s", "none", BOTTOM)
    draw_line(axes, sweep.of(metric, "top"), RED, "o", RED, TOP)
    scale_x(axes, sorted({row.k for row in sweep.rows if row.metric == metric and row.k > 0}), inches)
    _scale_y(axes, sweep, metric)


def draw_line(axes: Axes, rows: list[Row], colour: str, marker: str, face: str, label: str) -> None:
    """Means joined by a line, with confidence intervals where they are known."""
    if not rows:
        return
    bounded = [row for row in rows if row.low is not None and row.high is not None]
    if bounded:
        low, high = (np.array([getattr(row, side) for row in bounded], dtype=float) for side in ("low", "high"))
        axes.vlines([row.k for row in bounded], low, high, color=colour, linewidth=1.4, alpha=0.8, zorder=3)
    k, mean = [row.k for row in rows], [row.mean for row in rows]
    axes.plot(k, mean, "-", color=colour, marker=marker, markersize=5, markerfacecolor=face, label=label, zorder=4)


def draw_random(axes: Axes, rows: list[Row], label: str = RANDOM) -> None:
    """Means of random heads joined by a line, with every draw as a point and the range of the draws as a band."""
    drawn = [row for row in rows if row.draws]
    if drawn:
        k = [row.k for row in drawn]
        low, high = [min(row.draws) for row in drawn], [max(row.draws) for row in drawn]
        axes.fill_between(k, low, high, color=GREY, alpha=BAND, linewidth=0, zorder=1)
        points = [(row.k, value) for row in drawn for value in row.draws]
        axes.plot(*zip(*points, strict=True), "o", color=GREY, markersize=2.2, alpha=0.6, markeredgewidth=0, zorder=2)
    axes.plot(
        [row.k for row in rows],
        [row.mean for row in rows],
        "-",
        color=GREY,
        marker="D",
        markersize=4,
        linewidth=1.6,
        label=label,
        zorder=2,
    )


def scale_x(axes: Axes, ks: list[int], inches: float) -> None:
    """A tick at every K that has room; logarithmic when K spans more than a factor of 10."""
    if not ks:
        return
    log = ks[-1] > 10 * ks[0]
    places = np.log(ks) if log else np.asarray(ks, dtype=float)
    if log:
        axes.set_xscale("log")
    span = float(places[-1] - places[0]) or 1.0
    sizes = [(0.05 + 0.07 * len(str(k))) / inches * span for k in ks]
    kept = [ks[i] for i in spaced(list(places), sizes)]
    axes.set_xticks(kept, [str(k) for k in kept])
    axes.set_xticks([], minor=True)


def _scale_y(axes: Axes, sweep: Sweep, metric: str) -> None:
    values = [v for row in sweep.rows if row.metric == metric for v in (row.mean, *row.draws) if math.isfinite(v)]
    unit = sweep.unit_of(metric)
    if metric in SHARES:
        axes.set_ylim(-0.04, 1.04)
    elif metric == "perplexity" and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        unit += ", log scale"
    style(axes, "Heads ablated, K", f"{sweep.name_of(metric)}\n({unit})")
