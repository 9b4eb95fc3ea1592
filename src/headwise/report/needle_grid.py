"""The needle grid: how much a model recalls, by context length and depth of the needle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import reason
from headwise.report.canvas import (
    INK,
    add_colour_bar,
    add_legend,
    hatch_background,
    hatch_key,
    new_figure,
    set_title,
    style,
    thinned,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP = "cividis"  # perceptually uniform and made for colour-blind readers
MOST = 512  # lengths, or depths
NUMBERED = 20
"""Grids of at most so many lengths show their numbers."""


def needle_grid(cells: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write mean recall by length and depth.

    Args:
        cells: rows with length (tokens), depth and recall (both in [0, 1]), as in provenance["cells"].
        path: of the picture.
    """
    write_figure(lambda: draw_needle_grid(cells), path)


def draw_needle_grid(cells: Iterable[Mapping[str, Any]]) -> Figure:
    """Mean recall per (length, depth); cells that were not run are hatched. Beside a depth stands where its needles really were, on average."""
    cells = list(cells)
    lengths, depths, recall, runs = tabulate(cells)
    real = realised_depths(cells)
    cell = 0.42 if len(lengths) <= NUMBERED else 0.28
    width, height = max(5.2, len(lengths) * cell + 1.9), max(2.6, len(depths) * 0.36 + 1.6)
    figure = new_figure(width, height)
    axes = figure.subplots()
    style(axes, "Context length (tokens)", "Needle depth (%), realised in brackets" if real else "Needle depth (%)")
    axes.spines[:].set_visible(False)
    image = axes.imshow(np.ma.masked_invalid(recall), cmap=MAP, vmin=0, vmax=1, aspect="auto", zorder=1)
    crowded = len(lengths) > (width - 1.9) / 0.62
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    shown = thinned(len(lengths), cell, 0.2)
    axes.set_xticks(shown, [f"{lengths[i]:,}" for i in shown], **slant)
    axes.set_yticks(range(len(depths)), [f"{100 * d:.3g}" + (f" ({100 * real[d]:.3g})" if d in real else "") for d in depths])
    add_colour_bar(figure, image, axes, "Mean recall", ticks=(0, 0.25, 0.5, 0.75, 1))
    if len(lengths) <= NUMBERED:
        _write_numbers(axes, recall)
    if (runs == 0).any():
        hatch_background(axes)
        add_legend(figure, {"not run": hatch_key()})
    set_title(figure, *_title(recall, runs))
    return figure


def tabulate(
    cells: Iterable[Mapping[str, Any]],
) -> tuple[list[int], list[float], NDArray[np.float64], NDArray[np.int64]]:
    """Cells as a grid.

    Args:
        cells: rows with length (tokens), depth and recall (both in [0, 1]).

    Returns:
        Lengths and depths, both ascending, mean recall [depth, length] (NaN where nothing was run), and number of runs [depth, length].

    Raises:
        HeadwiseError: there are no rows, a row lacks a value, or the grid has more than `MOST` lengths or depths.
    """
    try:
        rows = [(int(cell["length"]), round(float(cell["depth"]), 6), float(cell["recall"])) for cell in cells]
    except (KeyError, TypeError, ValueError) as error:
        raise HeadwiseError(f"a needle grid needs length, depth and recall of every run ({reason(error)})") from error
    if not rows:
        raise HeadwiseError("there are no needle runs to draw; score files of other projects do not list them")
    lengths, depths = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    if max(len(lengths), len(depths)) > MOST:
        raise HeadwiseError(
            f"a needle grid of {len(lengths)} lengths × {len(depths)} depths cannot be drawn; at most {MOST} of each"
        )
    total, runs = np.zeros((len(depths), len(lengths))), np.zeros((len(depths), len(lengths)), dtype=np.int64)
    for length, depth, recall in rows:
        at = depths.index(depth), lengths.index(length)
        total[at] += recall
        runs[at] += 1
    return lengths, depths, np.where(runs > 0, total / np.maximum(runs, 1), np.nan), runs


def realised_depths(cells: Iterable[Mapping[str, Any]]) -> dict[float, float]:
    """Wanted depth -> mean realised depth of its runs, for depths whose runs say it; both are fractions in [0, 1]."""
    found: dict[float, list[float]] = {}
    for cell in cells:
        if isinstance(cell.get("realised_depth"), int | float):
            found.setdefault(round(float(cell["depth"]), 6), []).append(float(cell["realised_depth"]))
    return {depth: float(np.mean(values)) for depth, values in found.items()}


def _title(recall: NDArray[np.float64], runs: NDArray[np.int64]) -> tuple[str, str]:
    fewest, most = int(runs[runs > 0].min()), int(runs.max())
    each = f"{most} run{'s' * (most != 1)}" if fewest == most else f"{fewest} to {most} runs"
    mean = float(np.nansum(recall * runs) / runs.sum())
    return f"Needle recall, mean {mean:.2f}", f"{int((runs > 0).sum())} cells, {each} per cell"


def _write_numbers(axes: Axes, recall: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(recall):
        if not np.isnan(value):
            colour = INK if value > 0.5 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour, zorder=2)
