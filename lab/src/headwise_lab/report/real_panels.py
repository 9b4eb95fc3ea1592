"""Figures of `headwise lab properties` that only real models have: three ablation modes, and needles without a common word."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from headwise.report.canvas import BLUE, GREY, INK, RED, SMALL, new_figure, style
from headwise_lab.report.panels import GREEN, NARROW, WIDE, Data, Panel, legend_of, set_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = {"zero": (RED, "o"), "uniform": (BLUE, "s"), "mean": (GREEN, "^")}


def mode_panels(data: Data) -> list[Panel]:
    """Recall against the number of heads ablated, one line per mode."""
    text = "{}: needle recall with the strongest heads ablated in three ways (full lines), and with random heads of the same layers (dotted)."
    return [
        Panel(f"modes-{model['name']}", partial(draw_modes, model), text.format(model["name"]))
        for model in data["models"]
        if model.get("modes")
    ]


def draw_modes(model: Data) -> Figure:
    """Top K full, random K dotted."""
    figure = new_figure(NARROW + 0.2, 3.15)
    axes = figure.subplots()
    ticks: list[int] = []
    for mode, rows in model["modes"].items():
        colour, marker = MODES[mode]
        for kind, line in (("top", "-"), ("random", ":")):
            found = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["k"])
            ticks = [row["k"] for row in found]
            label = mode if kind == "top" else None
            axes.plot(ticks, [row["mean"] for row in found], line, color=colour, marker=marker, markersize=4, label=label)
    whole = next(row["mean"] for rows in model["modes"].values() for row in rows if row["kind"] == "none")
    axes.axhline(whole, color=INK, linestyle="--", linewidth=1, label="whole model")
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-0.04, 1.06)
    style(axes, f"Heads ablated of {model['heads']} (log)", "Needle recall")
    set_name(figure, axes, model["name"], "by what replaces a head's output")
    legend_of(figure, axes)
    return figure


def paraphrased_panels(data: Data) -> list[Panel]:
    """Recall of both kinds of question, per model."""
    text = "{}: recall of the same needles, asked in their own words and without any of them. At {} tokens also with the {} strongest heads ablated."
    return [
        Panel(
            f"paraphrased-{model['name']}",
            partial(draw_paraphrased, model),
            text.format(model["name"], model["lengths"][0], model["k"]),
        )
        for model in data["models"]
    ]


def draw_paraphrased(model: Data) -> Figure:
    """One bar per kind of question and context length, with what ablation leaves as marks."""
    rows = [bar for kind in ("literal", "paraphrased") for bar in _bars(model, kind)]
    figure = new_figure(WIDE, 0.36 * len(rows) + 1.3)
    axes = figure.subplots()
    for place, (_, mean, low, high, top, random) in enumerate(rows):
        axes.barh(place, mean, height=0.62, color=GREY, alpha=0.45)
        axes.plot([low, high], [place] * 2, color=INK, linewidth=1.2, label="whole model, 95 % CI")
        if top is not None and random is not None:
            axes.plot([random], [place], "D", color=GREY, markersize=6, label="random heads ablated", zorder=4)
            axes.plot([top], [place], "o", color=RED, markersize=7, label="strongest heads ablated", zorder=5, clip_on=False)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.03)
    style(axes, "Needle recall", "")
    axes.tick_params(axis="y", length=0)
    set_name(figure, axes, model["name"], f"{model['needles']} needles")
    legend_of(figure, axes)
    return figure


def _bars(model: Data, kind: str) -> Sequence[tuple[str, float, float, float, float | None, float | None]]:
    """(label, mean, low, high, top heads ablated, random heads ablated) at both lengths."""
    short, long = model["lengths"]
    rows, whole = {row["kind"]: row for row in model[kind]["rows"]}, model[kind]["recall"]
    bars: list[tuple[str, float, float, float, float | None, float | None]] = []
    if rows:
        none = rows["none"]
        ablated = rows["top"]["mean"], rows["random"]["mean"]
        bars.append((f"{kind}, {short} tokens", none["mean"], none["low"], none["high"], *ablated))
    return [*bars, (f"{kind}, {long} tokens", whole["mean"], whole["low"], whole["high"], None, None)]
