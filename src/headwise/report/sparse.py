"""Quality of sparse decoding per chooser and budget: tables, and a page. Plain data in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from headwise.report.compression import UNKNOWN, bytes_text
from headwise.report.numbers import public_name
from headwise.report.page.charts import lines
from headwise.report.page.parts import details, figure, figures, header, note, section, table
from headwise.report.page.shell import Html, document, join, slug, tag, write_document

Row = Mapping[str, Any]
FOLDERS = re.compile(r"(=)[^,=]*[/\\]")  # in front of a file's own name, in an option
LONGEST_NAME = 22  # letters of a chooser in the console; longer names go on in the next line
NOTE = (
    "Read: keys and values that attention reads per step in all layers with full attention. To choose: what the chooser reads beside that (keys of "
    "the layers or heads that it looks at, bounds of pages; a small model's weights and its own cache). Moved: of what is read, what was not in "
    "slots from the step before. Mass: attention of all heads, and of the retrieval heads, that falls on what is read. Recall: share of the "
    "positions attended to most that are chosen, first and last ones not counted. Chance: of recall; and of overlap, budget / context. Greedy "
    "text: share of the full model's tokens before the first other one, and share of places with the same token. CI: 95 %, bootstrap over contexts."
)
# Column -> heading and format; those of a task, of running text, and of greedy text.
TASK = {"score": ("Score", ".2f"), "full_score": ("Full", ".2f")}
TEXT = {
    "perplexity_ratio": ("PPL / full", ".3f"), "agreement": ("Agree", ".2f"), "mass": ("Mass", ".2f"), "mass_heads": ("At heads", ".2f"),
    "recall": ("Recall", ".2f"), "recall_by_chance": ("Chance", ".2f"), "overlap": ("Overlap", ".2f"), "overlap_by_chance": ("Chance", ".2f"),
}  # fmt: skip
GREEDY = {"agreement_greedy": ("Before first other", ".2f"), "equal_greedy": ("Equal", ".2f")}
BYTES = {"bytes_read": "Read", "bytes_chosen_by": "To choose", "bytes_moved": "Moved"}


def label_of(row: Row) -> str:
    """Task and length."""
    return f"{row['task']}, {row['length']} tokens"


def sparse_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per task and length, two for running text; one line per chooser and budget."""
    return [one for label, own in _parts(with_short_names(rows)).items() for one in _tables(label, own)]


def with_short_names(rows: Sequence[Row]) -> list[Row]:
    """Rows in which choosers name files without their folders, unless two would then be called the same."""
    names = dict.fromkeys(str(row["chooser"]) for row in rows)
    short = {name: FOLDERS.sub(r"\1", name) for name in names}
    if len(set(short.values())) < len(names):
        short = {name: name for name in names}
    return [dict(row) | {"chooser": short[str(row["chooser"])]} for row in rows]


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
    rows, model = with_short_names(result["rows"]), public_name(result["model"])
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
            lead="What decoding keeps against the bytes that are read per step: keys and values by attention, and whatever the chooser reads to "
            "choose. One line per chooser and one point per budget. Dashed line: full attention.",
        ),
        _by_layer(parts),
        section(
            "Numbers",
            *(details(label, _html(own), open=i == 0) for i, (label, own) in enumerate(_parts(rows).items())),
            note(NOTE),
        ),
    )
    return write_document(path, document(f"headwise: sparse decoding of {model}", body))


def _by_layer(parts: Mapping[str, Sequence[Row]]) -> Html:
    """Recall of each layer, one chart per text and budget; nothing where no recall was measured."""
    drawn = []
    for label, rows in parts.items():
        known = [row for row in rows if row.get("recall_by_layer")]
        for budget in dict.fromkeys(row["budget"] for row in known):
            drawn.append(_layers_chart([row for row in known if row["budget"] == budget], f"{label}, budget {budget}"))
    lead = "Share of the positions attended to most that are chosen, by layer. Dashed line: chance. Layers that read everything have no recall."
    return section("Recall by layer", figures(*drawn), lead=lead) if drawn else Html("")


def _layers_chart(rows: Sequence[Row], label: str) -> Html:
    points = [(row["chooser"], i, value) for row in rows for i, value in enumerate(row["recall_by_layer"])]
    data = dict(zip(("chooser", "layer", "recall"), map(list, zip(*points, strict=True)), strict=True))
    ticks = range(0, len(rows[0]["recall_by_layer"]), 1 + len(rows[0]["recall_by_layer"]) // 12)
    heads = {"chooser": "Chooser", "layer": "Layer, counted among those with full attention", "recall": "Recall"}
    chart = lines(
        data, heads, x="layer", y="recall", series="chooser", x_values=ticks, y_domain=(0, 1),
        limits=[round(float(rows[0]["recall_by_chance"]), 3)],
        label=f"Recall by layer, {label}", name=f"recall-by-layer-{slug(label)}",
    )  # fmt: skip
    return figure(chart, title=label)


def _parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {label: [row for row in rows if label_of(row) == label] for label in dict.fromkeys(map(label_of, rows))}


def _qualities(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(column, what it is) of the charts of one task."""
    if rows[0]["task"] == "greedy":
        return [("agreement_greedy", "Greedy text before the first other token")]
    if rows[0]["task"] != "text":
        return [("score", "Score")]
    named = [("agreement", "Greedy agreement with the full model"), ("mass", "Attention kept, all heads")]
    if any(row.get("mass_heads") is not None for row in rows):
        named.append(("mass_heads", "Attention kept, retrieval heads"))
    return named


def _chart(rows: Sequence[Row], label: str, column: str, what: str) -> Html:
    full, others = rows[0], rows[1:]
    data = {"chooser": [row["chooser"] for row in others], "budget": [row["budget"] for row in others]}
    data |= {"read": [_megabytes(row) for row in others], "quality": [row[column] for row in others]}
    heads = {"chooser": "Chooser", "budget": "Budget", "read": "MB read per step, to choose included", "quality": what}
    most = max((value for value in data["read"] if value is not None), default=1.0) * 1.05
    limit = round(float(full["score"]), 3) if column == "score" else 1.0
    chart = lines(
        data, heads, x="read", y="quality", series="chooser", x_domain=(0, most), y_domain=(0, 1), limits=[limit],
        label=f"{what} against bytes read per step, {label}", name=f"{column}-{slug(label)}",
    )  # fmt: skip
    return figure(chart, title=f"{label}: {what[0].lower()}{what[1:]}")


def _megabytes(row: Row) -> float | None:
    """Read per step, by attention and to choose; None for rows of an older run, which did not count the latter."""
    chosen_by = row.get("bytes_chosen_by")
    return None if chosen_by is None else float(row["bytes_read"] + chosen_by) / 1e6


def _columns(row: Row) -> dict[str, tuple[str, str]]:
    return {"text": TEXT, "greedy": GREEDY}.get(row["task"], TASK)


def _interval(row: Row, name: str) -> str:
    """low–high of a quality; nothing where there is none."""
    found, how = row.get(f"{name}_interval"), _columns(row)[name][1]
    return "" if found is None else "–".join(format(end, how) for end in found)


def _cells(row: Row) -> list[str]:
    """Budget and qualities."""
    shown = [UNKNOWN if row.get(name) is None else format(row[name], how) for name, (_, how) in _columns(row).items()]
    return [UNKNOWN if row["budget"] is None else str(row["budget"]), *shown]


def _sizes(row: Row) -> list[str]:
    return [UNKNOWN if row.get(name) is None else bytes_text(row[name]) for name in BYTES]


def _headings(row: Row) -> list[str]:
    return ["Chooser", "Budget", *(name for name, _ in _columns(row).values())]


def _html(rows: Sequence[Row]) -> Html:
    """The table of one task, with intervals in small."""
    names, body = [*_headings(rows[0]), *BYTES.values()], []
    for row in rows:
        budget, *shown = _cells(row)
        ends = [_interval(row, name) for name in _columns(row)]
        marked = [
            join(value, " ", tag("small", end, class_="soft")) if end else value for value, end in zip(shown, ends, strict=True)
        ]
        body.append((row["chooser"], budget, *marked, *_sizes(row)))
    return table(names, body, numbers=range(1, len(names)), stacked=False)


def _tables(label: str, rows: Sequence[Row]) -> list[Table]:
    """Qualities, the interval of the first one, and bytes; running text has so many qualities that they have a table of their own."""
    title = Text(f"{label}, {rows[0]['n']} context{'s' if rows[0]['n'] > 1 else ''}", style="bold")
    if gate_note(rows):
        title.append(f"\n{gate_note(rows)}", style="bold red")
    columns = _columns(rows[0])
    first, name = next(iter(columns)), columns[next(iter(columns))][0]
    chooser, budget, quality, *others = _headings(rows[0])
    known = [[str(row["chooser"]), *_cells(row)] for row in rows]
    ends, sizes = [_interval(row, first) or UNKNOWN for row in rows], [_sizes(row) for row in rows]
    if rows[0]["task"] == "text":
        body = [[*cells[:2], end, *size] for cells, end, size in zip(known, ends, sizes, strict=True)]
        bytes_of = Text(f"{label}, bytes per step", style="bold")
        return [
            _table(title, _headings(rows[0]), known),
            _table(bytes_of, [chooser, budget, f"{name}, 95 % CI", *BYTES.values()], body),
        ]
    body = [[*cells[:3], end, *cells[3:], *size] for cells, end, size in zip(known, ends, sizes, strict=True)]
    return [_table(title, [chooser, budget, quality, "95 % CI", *others, *BYTES.values()], body)]


def _table(title: Text, headings: Sequence[str], body: Iterable[Sequence[str]]) -> Table:
    shown = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for i, name in enumerate(headings):
        if i:
            shown.add_column(name, justify="right")
        else:
            shown.add_column(name, max_width=LONGEST_NAME, overflow="fold")
    for cells in body:
        shown.add_row(*map(Text, cells))  # names are no markup
    return shown
