"""Cross-transfer in one picture: what each detector's heads are worth on each task, and how many heads the detectors have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwise.report.canvas import (
    BLUE,
    DARK,
    GREY,
    INK,
    SMALL,
    add_colour_bar,
    add_legend,
    frame_cells,
    light_to_dark,
    new_figure,
    set_title,
    style,
    write_figure,
)
from headwise.report.transfer_matrix import TransferMatrix, decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, HALVES, LIKE_RANDOM = "own", "halves", "like random"  # labels of artists
WIDE, NARROW, ROW = 0.54, 0.38, 0.34  # inches: columns of tasks and of detectors, rows
LEAST, LOWEST = 3.0, 5.2  # inches: a panel's width, so that its title fits; the figure's height, so that the labels of the bars fit
NUMBER = 7.5  # points, of the numbers in cells
FRAME = 2.2


def transfer_figure(matrix: TransferMatrix, path: Path, title: str) -> None:
    """Write the picture.

    Args:
        matrix: Of one model, see `headwise.report.transfer_matrix.read_matrix`.
        path: Of the picture, see `write_figure`.
        title: Its first line, such as the name of the model.

    Raises:
        HeadwiseError: Another suffix, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    write_figure(lambda: draw_transfer_figure(matrix, title), path)


def draw_transfer_figure(matrix: TransferMatrix, title: str) -> Figure:
    """Two panels: loss increases, detectors by tasks with random heads below; heads in common, detectors by detectors."""
    widths = max(LEAST, WIDE * len(matrix.tasks)), max(LEAST, NARROW * len(matrix.detectors))
    figure = new_figure(sum(widths) + 3.9, max(LOWEST, ROW * (len(matrix.detectors) + 1) + 2.4))
    left, right = figure.subplots(1, 2, width_ratios=widths)
    _draw_increases(figure, left, matrix)
    _draw_overlap(figure, right, matrix)
    add_legend(figure, _keys())
    set_title(figure, title, *_absent(matrix))
    return figure


def _draw_increases(figure: Figure, axes: Axes, matrix: TransferMatrix) -> None:
    """Detectors by tasks. Colours are shares of the largest increase of a task, so that tasks can be compared; numbers are increases."""
    style(axes, "Task (items that count)", "Heads of the detector")
    axes.set_title("Loss increase without the heads (nats per token)", fontsize=SMALL + 1, color=INK)
    names, tasks = matrix.detectors, list(matrix.tasks)
    axes.set_yticks(range(len(names) + 1), [*names, "random, mean"])
    if not tasks:
        axes.set_ylim(len(names) + 0.5, -0.5)
        axes.set_xticks([])
        axes.text(0.5, 0.5, "the model can do no task", ha="center", va="center", transform=axes.transAxes, fontsize=SMALL, color=INK)
        return
    cells = [[matrix.cells[name][task] for task in tasks] for name in names]
    shades = np.array([*([cell.shade for cell in row] for row in cells), [matrix.shades[task] for task in tasks]])
    image = _draw_cells(axes, shades, [*([decimals(cell.mean) for cell in row] for row in cells), [decimals(matrix.random[task]) for task in tasks]])
    _slanted(axes, [f"{task} ({matrix.tasks[task][0]})" for task in tasks])
    axes.axhline(len(names) - 0.5, color=INK, linewidth=1.2)
    frame_cells(axes, np.argwhere([[cell.own for cell in row] for row in cells]), BLUE, FRAME, OWN)
    for row, column in np.argwhere([[not cell.above for cell in row] for row in cells]):
        colour = _on(shades[row, column])
        axes.plot(column + 0.39, row - 0.3, "x", color=colour, markersize=3.2, markeredgewidth=0.9, label=LIKE_RANDOM, zorder=4)
    add_colour_bar(figure, image, axes, "Share of the task's largest")


def _draw_overlap(figure: Figure, axes: Axes, matrix: TransferMatrix) -> None:
    """Detectors by detectors; on the diagonal the two halves of one detector's items, which is as alike as two lists can be expected to be."""
    style(axes, "… found by this detector too", "Heads of the detector")
    axes.set_title(f"Share of heads in common; by chance {matrix.by_chance}", fontsize=SMALL + 1, color=INK)
    names = matrix.detectors
    shares = np.array([[matrix.overlap[one][other] for other in names] for one in names])
    image = _draw_cells(axes, shares, [[decimals(share) for share in row] for row in shares])
    axes.set_yticks(range(len(names)), names)
    _slanted(axes, names)
    frame_cells(axes, [(i, i) for i in range(len(names))], GREY, FRAME, HALVES)
    add_colour_bar(figure, image, axes, "Share of heads in common")


def _draw_cells(axes: Axes, shades: NDArray[np.float64], texts: list[list[str]]) -> Any:
    """A coloured cell with its number for every value in [0, 1]."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    image = axes.imshow(shades, cmap=light_to_dark(), vmin=0, vmax=1, aspect="auto", zorder=1)
    for (row, column), shade in np.ndenumerate(shades):
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=NUMBER, color=_on(shade), zorder=4)
    return image


def _on(shade: float) -> str:
    """A colour that can be read on a shade."""
    return INK if shade < DARK else "white"


def _slanted(axes: Axes, labels: list[str] | tuple[str, ...]) -> None:
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")


def _keys() -> dict[str, Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return {
        "the detector's own task, by its paper": Patch(facecolor="none", edgecolor=BLUE, linewidth=FRAME),
        "no more than random heads (95 % CI)": Line2D([], [], marker="x", linestyle="none", color=INK, markersize=5),
        "two halves of its own items: the ceiling": Patch(facecolor="none", edgecolor=GREY, linewidth=FRAME),
    }


def _absent(matrix: TransferMatrix) -> list[str]:
    """What is not drawn, in two lines; empty ones are left out."""
    tasks = [name.removeprefix("task ") for name in matrix.absent if name.startswith("task ")]
    detectors = [name for name in matrix.absent if not name.startswith("task ")]
    return [f"{word}: {', '.join(names)}" for word, names in (("no heads found", detectors), ("not testable", tasks)) if names]
