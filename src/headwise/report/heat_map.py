"""The map of all heads: layer by head, coloured by score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise.heads.types import HeadScores
from headwise.report.canvas import (
    BLUE,
    INK,
    add_colour_bar,
    add_legend,
    frame_cells,
    hatch_background,
    hatch_key,
    light_to_dark,
    new_figure,
    set_title,
    style,
    subject,
    thinned,
    write_figure,
)
from headwise.report.numbers import capital, count, neutral, noun, scored, thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTLINED, SLIDING = "outlined", "sliding"


def heat_map(scores: HeadScores, path: Path) -> None:
    """Write the map of all heads, layer by head.

    Args:
        scores: at least one head is scored.
        path: of the picture, see `write_figure`.

    Raises:
        HeadwiseError: no head is scored, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    write_figure(lambda: draw_heat_map(scores), path)


def draw_heat_map(scores: HeadScores) -> Figure:
    """Layer x head map, both from 0, layer 0 on top. Copy scores above 0.1 are outlined, unscored heads hatched."""
    known = scored(scores)
    layers, heads = scores.shape
    cell = float(np.clip(6.4 / max(layers, heads), 0.12, 0.42))
    width, height = max(5.2, heads * cell + 1.9), max(2.4, layers * cell + 1.7)
    figure = new_figure(width, height)
    axes = figure.subplots()
    style(axes, capital(noun(scores)), "Layer")
    axes.spines[:].set_visible(False)
    low, high = min(neutral(scores), float(known.min())), max(neutral(scores), float(known.max()))
    high = high if high > low else low + 1
    image = axes.imshow(np.ma.masked_invalid(scores.values), cmap=light_to_dark(), vmin=low, vmax=high, aspect="auto", zorder=1)
    axes.set_xticks(thinned(heads, (width - 1.9) / heads))
    axes.set_yticks(thinned(layers, cell))
    add_colour_bar(figure, image, axes, f"{capital(scores.score)} score")
    keys = _outline(axes, scores, cell) | _mark_unscored(axes, scores) | _mark_sliding(axes, scores, cell)
    if keys:
        add_legend(figure, keys)
    set_title(
        figure,
        f"{capital(scores.score)} score of {count(layers, 'layer')} × {count(heads, noun(scores))}",
        subject(scores.provenance),
    )
    return figure


def _outline(axes: Axes, scores: HeadScores, cell: float) -> dict[str, Any]:
    """Frame the heads above the lowest threshold."""
    from matplotlib.patches import Patch

    if not thresholds(scores):
        return {}
    threshold = thresholds(scores)[0]
    chosen = np.argwhere(np.nan_to_num(scores.values) > threshold)
    frame_cells(axes, chosen, BLUE, float(np.clip(cell * 6, 0.9, 2.0)), OUTLINED)
    share = len(chosen) / scored(scores).size
    label = f"above {threshold:g}: {count(len(chosen), noun(scores))} ({share:.1%})"
    return {label: Patch(facecolor="none", edgecolor=BLUE, linewidth=1.5)}


def _mark_unscored(axes: Axes, scores: HeadScores) -> dict[str, Any]:
    missing = int(np.isnan(scores.values).sum())
    if not missing:
        return {}
    hatch_background(axes)
    return {f"not scored: {count(missing, noun(scores))}": hatch_key()}


def _mark_sliding(axes: Axes, scores: HeadScores, cell: float) -> dict[str, Any]:
    """A mark beside each layer that sees only a window of the text."""
    layers = [i for i in scores.provenance.get("sliding_layers") or () if 0 <= i < scores.shape[0]]
    if not layers:
        return {}
    side = min(6.0, cell * 72 * 0.6)
    from matplotlib.lines import Line2D

    place = axes.get_yaxis_transform()
    axes.plot([1.012] * len(layers), layers, "<", color=INK, markersize=side, clip_on=False, transform=place, label=SLIDING)

    return {"sliding-window layer": Line2D([], [], marker="<", linestyle="none", color=INK, markersize=6)}
