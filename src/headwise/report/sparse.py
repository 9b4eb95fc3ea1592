"""Quality of sparse decoding per chooser and budget: tables, and a page. Plain data in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from headwise.report.compression import UNKNOWN, bytes_text
from headwise.report.numbers import public_name
from headwise.report.page.charts import lines
from headwise.report.page.parts import details, figure, figures, header, note, section, table
from headwise.report.page.shell import Html, document, join, slug, write_document

Row = Mapping[str, Any]
NOTE = (
    "Read: keys and values that attention reads per step in all layers with full attention; what a chooser reads to choose is not counted "
    "(the oracle reads all keys for that). Moved: of these, what was not in slots from the step before. Mass: attention of all heads, and of the "
    "retrieval heads, that falls on what is read. Recall: share of the positions attended to most that are chosen, first and last ones not "
    "counted. Chance: of recall; and of overlap, budget / context."
)
# Column -> heading and format; those of a task, and those of running text.
TASK = {"score": ("Score", ".2f"), "full_score": ("Full", ".2f")}
TEXT = {
    "perplexity_ratio": ("PPL / full", ".3f"), "agreement": ("Agree", ".2f"), "mass": ("Mass", ".2f"), "mass_heads": ("At heads", ".2f"),
    "recall": ("Recall", ".2f"), "recall_by_chance": ("Chance", ".2f"), "overlap": ("Overlap", ".2f"), "overlap_by_chance": ("Chance", ".2f"),
}  # fmt: skip


def label_of(row: Row) -> str:
    """Task and length."""
    return f"{row['task']}, {row['length']} tokens"


def sparse_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per task and length; one line per chooser and budget."""
    return [_table(label, own) for label, own in _parts(rows).items()]


def gate_note(rows: Sequence[Row]) -> str:
    """Why nothing is said of choosers on a task, or nothing."""
    full = rows[0]
    return "" if full["gate"] == "passed" else f"not testable on this model: full attention scores {full['score']:.2f}"


def write_page(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page: quality against bytes read per step, one line per chooser.

    Args:
        result: JSON data of `headwise bench decode`.
        path: Of the page.

    Raises:
        HeadwiseError: The file cannot be written.
    """
    rows, model = result["rows"], public_name(result["model"])
    parts = {label: own for label, own in _parts(rows).items() if not gate_note(own)}
    drawn = [_chart(own, label, *what) for label, own in parts.items() for what in _qualities(own)]
    failed = [note(f"{label}: {gate_note(own)}") for label, own in _parts(rows).items() if gate_note(own)]
    rivals = {row["chooser"] for row in rows if row["chooser"] != "full"}
    facts = {"Contexts per task": result["contexts"], "Choosers": len(rivals), "Seed": result["seed"]}
    body = join(
        header(f"Sparse decoding of {model}", facts=facts),
        section(
            "Quality against bytes read",
            figures(*drawn) if drawn else Html(""),
            *failed,
            lead="What decoding keeps against the bytes of keys and values that attention reads per step, one line per chooser and one point per "
            "budget. Dashed line: full attention.",
        ),
        section(
            "Numbers",
            *(details(label, _html(own), open=i == 0) for i, (label, own) in enumerate(_parts(rows).items())),
            note(NOTE),
        ),
    )
    return write_document(path, document(f"headwise: sparse decoding of {model}", body))


def _parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {label: [row for row in rows if label_of(row) == label] for label in dict.fromkeys(map(label_of, rows))}


def _qualities(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(column, what it is) of the charts of one task."""
    if rows[0]["task"] != "text":
        return [("score", "Score")]
    named = [("agreement", "Greedy agreement with the full model"), ("mass", "Attention kept, all heads")]
    return (
        [*named, ("mass_heads", "Attention kept, retrieval heads")]
        if rows[0]["mass_heads"] is not None or any(row.get("mass_heads") is not None for row in rows)
        else named
    )


def _chart(rows: Sequence[Row], label: str, column: str, what: str) -> Html:
    full, others = rows[0], rows[1:]
    data = {"chooser": [row["chooser"] for row in others], "budget": [row["budget"] for row in others]}
    data |= {"read": [row["bytes_read"] / 1e6 for row in others], "quality": [row[column] for row in others]}
    heads = {"chooser": "Chooser", "budget": "Budget", "read": "MB read per step", "quality": what}
    most = max(data["read"], default=1.0) * 1.05
    limit = 1.0 if full["task"] == "text" else round(float(full[column]), 3)
    chart = lines(
        data, heads, x="read", y="quality", series="chooser", x_domain=(0, most), y_domain=(0, 1), limits=[limit],
        label=f"{what} against bytes read per step, {label}", name=f"{column}-{slug(label)}",
    )  # fmt: skip
    return figure(chart, title=f"{label}: {what[0].lower()}{what[1:]}")


def _cells(row: Row) -> list[str]:
    """Budget, quality, bytes read and moved."""
    columns = TEXT if row["task"] == "text" else TASK
    shown = [UNKNOWN if row.get(name) is None else format(row[name], how) for name, (_, how) in columns.items()]
    sizes = [UNKNOWN if row.get(name) is None else bytes_text(row[name]) for name in ("bytes_read", "bytes_moved")]
    return [UNKNOWN if row["budget"] is None else str(row["budget"]), *shown, *sizes]


def _headings(row: Row) -> list[str]:
    return ["Chooser", "Budget", *(name for name, _ in (TEXT if row["task"] == "text" else TASK).values()), "Read", "Moved"]


def _html(rows: Sequence[Row]) -> Html:
    names = _headings(rows[0])
    return table(names, [(row["chooser"], *_cells(row)) for row in rows], numbers=range(1, len(names)), stacked=False)


def _table(label: str, rows: Sequence[Row]) -> Table:
    title = Text(f"{label}, {rows[0]['n']} contexts", style="bold")
    if gate_note(rows):
        title.append(f"\n{gate_note(rows)}", style="bold red")
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for i, name in enumerate(_headings(rows[0])):
        shown.add_column(name, justify="right" if i else "left")
    for row in rows:
        shown.add_row(Text(row["chooser"]), *_cells(row))
    return shown
