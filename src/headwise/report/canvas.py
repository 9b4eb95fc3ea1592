"""What all figures share: colours, font sizes, titles and ticks that fit, and saving. No pyplot, no global settings."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.heads.files import write_atomically
from headwise.report.numbers import public_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
DPI = 160
TITLE, LABEL, SMALL = 11, 10, 8.5
WIDE, SWATCH = 0.6, 0.6  # mean width of a letter in font sizes; legend key and gaps in inches
# Okabe and Ito's palette: told apart with all common kinds of colour blindness.
RED, BLUE, GREY, INK = "#D55E00", "#0072B2", "#767676", "#222222"
UNSCORED, HATCH = "#E6E6E6", "////"
DARK = 0.47  # share of `light_to_dark` from which white is read more easily than ink


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        MissingExtraError: it is not installed; the extra `report` is named.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty white Agg figure that lays itself out.

    Args:
        width: inches.
        height: inches.

    Returns:
        The figure, which is known to no global state of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_suffix(path: Path) -> None:
    """Refuse a name before anything is drawn.

    Raises:
        HeadwiseError: the path does not end in one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise HeadwiseError(f"cannot write a figure to {str(path)!r}; end its name with {' or '.join(SUFFIXES)}")


def write_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Draw and write, replacing an older file whole or not at all.

    The same data give the same bytes whatever the user's matplotlib settings, which are left as they are.

    Args:
        draw: makes the figure.
        path: ends in one of `SUFFIXES`.

    Raises:
        HeadwiseError: another suffix, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_suffix(path)
    require_matplotlib()
    import matplotlib

    kind, buffer = path.suffix.lower().removeprefix("."), io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": "headwise"}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "headwise"
        draw().savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    write_atomically(path, buffer.getvalue())


def style(axes: Axes, x_label: str, y_label: str) -> None:
    """Label the axes, and leave only the two spines that are scales."""
    axes.set_xlabel(x_label, fontsize=LABEL, color=INK)
    axes.set_ylabel(y_label, fontsize=LABEL, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def shortened(text: str, width: float, size: float = LABEL) -> str:
    """A text cut in its middle so that it fits.

    Args:
        text: one line.
        width: room in inches; 12 characters are left in any case.
        size: of the font, in points.
    """
    room = max(12, int(width * 72 / (WIDE * size)))
    if len(text) <= room:
        return text
    return f"{text[: (room - 1) // 3]}…{text[-(room - 1 - (room - 1) // 3) :]}"


def subject(provenance: Mapping[str, Any]) -> str:
    """The name of the model, or of the file, that scores come from; empty if nothing is known."""
    return public_name(provenance.get("model") or provenance.get("imported_from") or "")


def thinned(count: int, cell: float, label: float = 0.24) -> NDArray[np.int64]:
    """Places of labels beside a row of cells, so far apart that they do not touch.

    Args:
        count: number of cells.
        cell: size of one, in inches.
        label: size of a label, in inches.

    Returns:
        0, step, 2 step ... below `count`, where step is a power of 2.
    """
    step = 1
    while step * cell < label:
        step *= 2
    return np.arange(0, count, step)


def spaced(places: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """Which labels to keep, so that they do not touch.

    Args:
        places: middles of the labels, ascending, in any unit.
        sizes: of the labels, in that unit.

    Returns:
        Their indices, ascending; the last one is always kept.
    """
    kept: list[int] = []
    for i in reversed(range(len(places))):
        if not kept or places[kept[-1]] - places[i] >= (sizes[i] + sizes[kept[-1]]) / 2:
            kept.append(i)
    return kept[::-1]


def add_legend(figure: Figure, keys: Mapping[str, Any]) -> None:
    """A legend below all axes, where it covers no data.

    Args:
        figure: the figure.
        keys: label -> handle of matplotlib.
    """
    widest = SWATCH + max(map(len, keys)) * SMALL * WIDE / 72
    columns = max(1, min(len(keys), int(figure.get_figwidth() / widest)))
    columns = -(-len(keys) // -(-len(keys) // columns))  # rows as equally long as they can be
    figure.legend(
        list(keys.values()), list(keys), loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False, labelcolor=INK
    )


def add_colour_bar(figure: Figure, image: Any, axes: Axes, label: str, ticks: Iterable[float] | None = None) -> None:
    """A plain colour bar on the right.

    Args:
        figure: the figure.
        image: what it explains, a mappable of matplotlib.
        axes: beside which it stands.
        label: what the colours mean.
        ticks: values to name; None leaves them to matplotlib.
    """
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=max(10, 4 * figure.get_figheight()), fraction=0.06)
    if ticks is not None:
        bar.set_ticks(list(ticks))
    bar.set_label(label, fontsize=LABEL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.outline.set_visible(False)


def set_title(figure: Figure, *lines: str) -> None:
    """Title lines over the whole figure; empty ones are left out, long ones cut in the middle."""
    shown = [shortened(line, figure.get_figwidth(), TITLE) for line in lines if line]
    figure.suptitle("\n".join(shown), fontsize=TITLE, color=INK, parse_math=False)


def light_to_dark() -> Any:
    """Magma from light to dark, without its black end, on which no frame shows; perceptually uniform."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["magma_r"](np.linspace(0, 0.85, 256)), "headwise")


def frame_cells(axes: Axes, cells: Sequence[Sequence[int]] | NDArray[np.int64], colour: str, width: float, label: str) -> None:
    """Frames around cells of an image.

    Args:
        axes: of the image.
        cells: (row, column) of each; there may be none.
        colour: of the frames.
        width: of their lines, in points.
        label: of the artist, by which it is found again.
    """
    from matplotlib.collections import PolyCollection

    if not len(cells):
        return
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5]])
    frames = np.asarray(cells)[:, None, ::-1] + corners[None]
    drawn = PolyCollection(frames, facecolors="none", edgecolors=colour, linewidths=width, label=label, zorder=3, clip_on=False)
    axes.add_collection(drawn, autolim=False)


def hatch_background(axes: Axes) -> None:
    """Fill the axes with the pattern that means "nothing here"; masked cells of an image on top let it through."""
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=UNSCORED, edgecolor=GREY, hatch=HATCH, linewidth=0, zorder=0)
    )


def hatch_key() -> Any:
    """Legend handle for `hatch_background`."""
    from matplotlib.patches import Patch

    return Patch(facecolor=UNSCORED, edgecolor=GREY, hatch=HATCH, linewidth=0.5)
