"""What pages are made of: header, section, table, figure, note, facts, marked text. Every text is escaped, see `shell.Html`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from headwise.heads.errors import HeadwiseError
from headwise.report.page.charts import Chart
from headwise.report.page.shell import Html, data_tag, join, slug, tag

Marked = tuple[str, float | None, str | None]
"""A piece of text, its weight in [0, 1] (None: not weighed) and its mark: one of `MARKS` or None."""
MARKS = ("needle", "answer", "dropped")


def header(title: str, *lead: object, facts: Mapping[str, object] | None = None) -> Html:
    """The top of a page.

    Args:
        title: the heading.
        *lead: lines under it.
        facts: key numbers, name -> value.
    """
    lines = [tag("p", line, class_="lead") for line in lead]
    return tag("header", tag("h1", title), *lines, key_facts(facts) if facts else "", class_="top")


def section(title: str, *children: object, lead: str | Html = "", id: str | None = None, aside: object = "") -> Html:
    """A card with a heading.

    Args:
        title: the heading.
        *children: what is in it.
        lead: a line under the heading.
        id: of the element; made from the title if None.
        aside: a short thing beside the heading, as a verdict.
    """
    top = tag("header", tag("h2", title), aside)
    return tag("section", top, tag("p", lead, class_="lead") if lead else "", *children, id=id or slug(title.lower()))


def key_facts(facts: Mapping[str, object]) -> Html:
    """Numbers worth seeing first: name -> value."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()), class_="facts")


def note(*children: object) -> Html:
    """Small print."""
    return tag("p", *children, class_="soft")


def details(summary: object, *children: object, open: bool = False) -> Html:
    """Something that stays closed until it is asked for.

    Args:
        summary: the line to click on.
        *children: what is in it.
        open: whether it is open at first.
    """
    return tag("details", tag("summary", summary), *children, open=open)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    names: bool = True,
    stacked: bool = True,
    caption: str = "",
) -> Html:
    """A table.

    Args:
        columns: headings.
        rows: cells, as many as there are columns.
        numbers: indices of columns whose cells are numbers, set to the right.
        names: cards repeat the names of columns, from the second one on.
        stacked: on a narrow screen each row becomes a small card.
        caption: a line above the table.
    """
    kinds = ["number" if i in numbers else None for i in range(len(columns))]
    head = tag("tr", *(tag("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds, strict=True)))
    body = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=kinds[i], data_name=columns[i] if names and i and columns[i] else None)
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    top = tag("caption", caption) if caption else ""
    return tag(
        "div", tag("table", top, tag("thead", head), tag("tbody", *body), class_="cards" if stacked else None), class_="scroll"
    )


def figures(*parts: object) -> Html:
    """Figures beside each other where there is room."""
    return tag("div", *parts, class_="panels")


def figure(chart: Chart, caption: object = "", *, title: str = "", table: bool = True, width: int | None = None) -> Html:
    """A chart with its title, its caption, and a table of its data that opens on demand (unless `table` is False).

    The chart can be saved as PNG or SVG by the menu in its corner.

    Args:
        chart: its data may be empty if a script of the page fills them in.
        caption: below the chart.
        title: above the chart.
        table: offer the table.
        width: at most so many pixels, for charts of few cells; else as wide as there is room.
    """
    held = {"spec": chart.spec, "data": chart.data, "columns": chart.columns, "name": chart.name, "label": chart.label}
    drawing = tag("div", data_tag(held), class_="chart", data_name=chart.name, role="group", aria_label=chart.label)
    return tag(
        "figure",
        tag("h3", title) if title else "",
        drawing,
        tag("figcaption", caption) if caption else "",
        tag("details", tag("summary", "Table of this figure"), class_="data") if table else "",
        style=f"max-width:{max(width, 320)}px" if width else None,
    )


def marked_text(pieces: Iterable[Marked], *, scale: float | None = None, label: str = "") -> Html:
    """Running text whose pieces are as dark as they are heavy; needle and answer are underlined, dropped pieces are struck out.

    Args:
        pieces: text, weight and mark, in the order of reading.
        scale: the weight that is drawn in full colour; the largest one if None.
        label: what the text is, for readers who cannot see the colours.

    Raises:
        HeadwiseError: a mark that is not one of `MARKS`.
    """
    held = list(pieces)
    unknown = {mark for _, _, mark in held if mark is not None} - set(MARKS)
    if unknown:
        raise HeadwiseError(f"unknown mark {sorted(unknown)[0]!r} in a text; use {', '.join(MARKS)}")
    full = scale or max((weight for _, weight, _ in held if weight), default=0.0) or 1.0
    spans: list[object] = []
    for piece, weight, mark in held:
        share = min(1.0, max(0.0, (weight or 0.0) / full))
        if share < 0.005 and mark is None:
            spans.append(piece)
            continue
        style = f"--w:{share:.2f}" if share >= 0.005 else None
        shown = f"{weight:.3g}" if weight else None
        spans.append(tag("span", piece, class_=f"w {mark}" if mark else "w", style=style, title=shown))
    return tag("p", *spans, class_="marked", aria_label=label or None)


def text_key(*, weights: str = "", marks: Mapping[str, str] | None = None) -> Html:
    """What the colours and lines of a `marked_text` mean.

    Args:
        weights: what a dark colour means; no colours are explained if empty.
        marks: one of `MARKS` -> its meaning.
    """
    items = []
    if weights:
        ramp = [tag("span", " ", class_="w", style=f"--w:{share}") for share in (0.1, 0.4, 0.7, 1.0)]
        items.append(tag("span", tag("span", *ramp, class_="ramp"), " ", weights))
    items += [tag("span", tag("span", name, class_=f"w {name}"), " ", meaning) for name, meaning in (marks or {}).items()]
    return tag("p", join(*items), class_="key")
