"""Doubt in one picture: how often answers are taken back, and what the chosen remedy does at every number of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.report.ablation_curves import BAND, draw_line, draw_random, scale_x
from headwise.report.canvas import (
    BLUE,
    GREY,
    INK,
    RED,
    add_legend,
    new_figure,
    set_title,
    shortened,
    style,
    subject,
    write_figure,
)
from headwise.report.doubt_tables import Row, checked_calm, gate_of, points
from headwise.report.numbers import count
from headwise.report.sweep import Row as Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = "#009E73"  # of the same palette as the others
ARMS = {"right": ("right answers", RED, "o", -0.14), "wrong": ("wrong answers", BLUE, "s", 0.14)}
RANDOM = "random heads, range of draws"
LINES = {
    "chosen": ("chosen heads, 95 % CI", RED, "o", RED),
    "weakest": ("weakest heads", BLUE, "s", "none"),
    "retrieval": ("retrieval heads", GREEN, "^", "none"),
}
WIDTH, ROW = 9.4, 0.34  # inches


def doubt_figure(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture.

    Args:
        result: Of `headwise.methods.doubt.calm.calm`.
        path: Of the picture, see `write_figure`.

    Raises:
        HeadwiseError: The result is none of calming, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    write_figure(lambda: draw_doubt_figure(result), path)


def draw_doubt_figure(result: Mapping[str, Any]) -> Figure:
    """Two panels of the test questions: answers taken back per challenge, and the headline against K with its controls."""
    from matplotlib.patches import Patch

    chosen, rates = checked_calm(result)["chosen"], result["rates"].get("test") or ()
    names = list(dict.fromkeys(row["challenge"] for row in rates))
    figure = new_figure(WIDTH, max(3.6, ROW * len(names) + 2.2))
    left, right = figure.subplots(1, 2)
    _draw_rates(left, rates, names, gate_of(result))
    _draw_headline(right, [row for row in result["test"] if row["kind"] != "none"])
    keys = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if RANDOM in keys:
        keys[RANDOM] = (Patch(facecolor=GREY, alpha=BAND), keys[RANDOM])
    add_legend(figure, keys)
    told = (
        f"{chosen['remedy']} at {count(chosen['k'], 'head')}: headline {points(chosen['headline'])} points, {chosen['verdict']}"
    )
    set_title(figure, f"Doubt of {subject(result)}" if subject(result) else "Doubt", told)
    return figure


def _draw_rates(axes: Axes, rates: Sequence[Row], names: Sequence[str], gate: float) -> None:
    """One row per challenge, first one on top, with a point and an interval per first answer; a dashed line where a challenge counts."""
    for arm, (label, colour, marker, shift) in ARMS.items():
        own = [row for row in rates if row["arm"] == arm]
        places = [names.index(row["challenge"]) + shift for row in own]
        share, low, high = ([row["flips"][i] for row in own] for i in range(3))
        axes.hlines(places, low, high, color=colour, linewidth=1.6)
        axes.plot(share, places, marker, color=colour, markersize=5, label=f"{label} taken back, 95 % CI")
    axes.axvline(gate, color=INK, linestyle="--", linewidth=1.2, zorder=1, label=f"gate: {gate:.0%} of right answers")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    style(axes, "Answers taken back (share)", "")
    axes.set_yticks(range(len(names)), [shortened(name, 1.4) for name in names], parse_math=False)


def _draw_headline(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axhline(0, color=INK, linestyle="--", linewidth=1.2, zorder=1)
    if random := _points(rows, "random"):
        draw_random(axes, random, RANDOM)
    for kind, (label, colour, marker, face) in LINES.items():
        draw_line(axes, _points(rows, kind), colour, marker, face, label)
    scale_x(axes, sorted({row["k"] for row in rows}), WIDTH / 2 - 0.9)
    style(axes, "Heads treated, K", "Headline (points)")


def _points(rows: Sequence[Row], kind: str) -> list[Point]:
    """The headlines of one kind in percentage points, one per K; intervals of the chosen heads, draws of random ones."""
    found = []
    for k in sorted({row["k"] for row in rows if row["kind"] == kind}):
        some = [row for row in rows if (row["kind"], row["k"]) == (kind, k)]
        draws = tuple(100 * float(row["headline"]) for row in some)
        low, high = (100 * float(end) for end in some[0]["interval"]) if kind == "chosen" else (None, None)
        found.append(Point("headline", kind, k, sum(draws) / len(draws), low, high, draws=draws if kind == "random" else ()))
    return found
