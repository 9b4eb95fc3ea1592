"""Compressed caches: what is still answered against the bytes that are held, as a line, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from headwise.heads.errors import HeadwiseError
from headwise.report.canvas import BLUE, GREY, INK, RED, SMALL, add_legend, new_figure, set_title, style, write_figure
from headwise.report.numbers import public_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.4, 2.6)
NOTE = (
    "Exact: share of correct answers. Vs. full: paired difference from the full cache, with p of a sign-flip test. "
    "Survival: share of the answer's tokens that are kept, mean over KV heads. Held: bytes right after the prefill."
)
# Okabe and Ito's palette beyond the four of the canvas; the first method is the full cache and grey.
COLOURS = (RED, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = "osD^vPX"
UNKNOWN = "–"

Row = Mapping[str, Any]


def held_line(facts: Mapping[str, Any]) -> str:
    """What a cache held right after the prompt, against the full one, in one line.

    Keys and values that are held are compared with those of the full cache; memory also has their positions, and spare room for new tokens,
    which a cache that was continued has got already and one that was just cut has not.
    """
    skipped = f"; layers {', '.join(map(str, facts['skipped_layers']))} not counted" if facts["skipped_layers"] else ""
    return (
        f"held {facts['positions']:.1f} of {facts['tokens']} positions per KV head, "
        f"{bytes_text(facts['formula'])} of {bytes_text(facts['full'])} ({facts['formula'] / facts['full']:.1%}); "
        f"{bytes_text(facts['nbytes'])} of memory with positions and spare room{skipped}"
    )


def compression_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table per task, length and place of the question; one line per method and budget."""
    rows, notes = checked_rows(result), gate_notes(result)
    labels = dict.fromkeys(map(label_of, rows))
    return [_table(label, [row for row in rows if label_of(row) == label], notes.get(label)) for label in labels]


def gate_notes(result: Mapping[str, Any]) -> dict[str, str]:
    """Label -> why nothing can be compared there, for those parts of a result in which the full cache answers too little."""
    return {label_of(gate): gate["note"] for gate in result.get("gates", ()) if gate["note"]}


def _table(label: str, rows: Sequence[Row], note: str | None) -> Table:
    title = Text(f"{label}, {rows[0]['n']} contexts", style="bold")
    if note:
        title.append(f"\n{note}", style="bold red")
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("Method")
    for name in ("Budget", "Exact", "95 % CI", "Vs. full", "p", "Survival", "Held", "Of full"):
        table.add_column(name, justify="right")
    for row in rows:
        budget = UNKNOWN if row["budget"] is None else f"{row['budget']:g}"
        survival = UNKNOWN if row["survival"] is None else f"{row['survival']:.2f}"
        difference, p = (f"{row['difference']:+.2f}", f"{row['p']:.2g}") if row["difference"] is not None else (UNKNOWN, UNKNOWN)
        interval = f"{row['low']:.2f}–{row['high']:.2f}"
        held = bytes_text(row["bytes"]), f"{row['bytes'] / row['bytes_full']:.1%}"
        table.add_row(Text(row["method"]), budget, f"{row['exact']:.2f}", interval, difference, p, survival, *held)
    return table


def recall_figure(result: Mapping[str, Any], path: Path) -> None:
    """Write recall against bytes, one panel per task, length and place of the question.

    Args:
        result: JSON data of `headwise bench cache`.
        path: of the picture, see `write_figure`.

    Raises:
        HeadwiseError: another result, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    write_figure(lambda: draw_recall(result), path)


def draw_recall(result: Mapping[str, Any]) -> Figure:
    """Share of exact answers against the share of the full cache's bytes; points of a method joined, the full cache as a dashed line."""
    rows, notes = checked_rows(result), gate_notes(result)
    labels = list(dict.fromkeys(label_of(row) for row in rows))
    columns = min(2, len(labels))
    lines = -(-len(labels) // columns)
    figure = new_figure(max(5.4, columns * PANEL[0]), lines * PANEL[1] + 1.2)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    methods = list(dict.fromkeys(row["method"] for row in rows[1:] if row["method"] != rows[0]["method"]))
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    for axes, label in zip(panels, labels, strict=False):
        _draw_panel(axes, [row for row in rows if label_of(row) == label], methods)
        axes.set_title(f"{label}\n(not measurable)" if label in notes else label, fontsize=SMALL, color=INK)
    add_legend(figure, {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)})
    set_title(figure, public_name(result.get("model", "")), "Compressed caches: exact answers against bytes")
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    axes.axhline(rows[0]["exact"], color=GREY, linestyle="--", linewidth=1.2, label=rows[0]["method"], zorder=1)
    for i, method in enumerate(methods):
        own = sorted((row for row in rows[1:] if row["method"] == method), key=lambda row: row["bytes"])
        shares = [row["bytes"] / row["bytes_full"] for row in own]
        colour = COLOURS[i % len(COLOURS)]
        axes.vlines(shares, [row["low"] for row in own], [row["high"] for row in own], color=colour, linewidth=1.2, alpha=0.6)
        means, marker = [row["exact"] for row in own], MARKERS[i % len(MARKERS)]
        axes.plot(shares, means, "-", color=colour, marker=marker, markersize=4.5, label=method, zorder=3)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(left=0)
    style(axes, "Bytes held, share of the full cache", "Exact answers\n(share, 95 % CI)")


def checked_rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a benchmark.

    Raises:
        HeadwiseError: the result is not one of a cache benchmark.
    """
    needed = {"task", "length", "question", "method", "budget", "n", "exact", "low", "high", "difference", "bytes", "bytes_full"}
    rows = result.get("rows")
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) and needed <= set(row) for row in rows):
        raise HeadwiseError("this is no result of a cache benchmark; give the JSON that `headwise bench cache` wrote")
    return list(rows)


def label_of(row: Row) -> str:
    """Task, length and place of the question."""
    length = "" if row["length"] is None else f", {row['length']} tokens"
    return f"{row['task']}{length}, question {row['question']}"


def bytes_text(count: float) -> str:
    """Bytes with a unit, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
