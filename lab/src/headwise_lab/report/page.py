"""The page of `headwise lab properties`: one HTML file that needs nothing else, with every figure inside it. Plain data in, text out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.report.canvas import write_figure
from headwise.report.page.parts import details, figures, header, note, section, table
from headwise.report.page.shell import THEME, Html, document, join, slug, tag, text, write_document
from headwise_lab.report.figures import panels_of
from headwise_lab.report.panels import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
SCALE = 1.4  # pixels of a page per point of a figure
MARKS = {"holds": "✓", "partly": "◐", "does not hold": "✗", "not measured": "–"}
DRAWN = ("red", "blue", "grey", "green", "orange", "purple", "sky", "ink")  # colours of the theme that occur in figures
STYLE = """
.holds{color:var(--good)}.partly{color:var(--mid)}.does-not-hold{color:var(--bad)}.not-measured{color:var(--soft)}
.panels>figure{flex:0 1 auto}figure svg{display:block;width:100%;height:auto;color:var(--ink)}
.paper{border-left:3px solid var(--blue);padding:.1rem 0 .1rem .8rem;margin:.7rem 0}.paper ul{margin:.2rem 0;padding-left:1.1rem}
.mark{font-weight:700}
"""


def write_page(result: Data, path: Path, pictures: Path | None = None) -> list[Path]:
    """Write the page, replacing an older one whole.

    Args:
        result: JSON data of `measure_properties`.
        path: Of the page.
        pictures: Folder for every figure as PNG; None: none are written.

    Returns:
        All paths that were written, the page first.

    Raises:
        HeadwiseError: A file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    panels = {one["key"]: panels_of(one["key"], one["data"]) for one in result["properties"]}
    written = [write_document(path, page(result, panels))]
    if pictures is not None:
        for panel in (panel for found in panels.values() for panel in found):
            written.append(pictures / f"{slug(panel.name)}.png")
            write_figure(panel.draw, written[-1])
    return written


def page(result: Data, panels: Mapping[str, Sequence[Panel]]) -> str:
    """The whole document.

    Args:
        result: JSON data of `measure_properties`.
        panels: Key of a property -> its panels.
    """
    names = ", ".join(model["name"] for model in result["models"])
    body = join(
        header(
            "Retrieval heads of small models: five properties, checked",
            f"Models: {names}. Every verdict follows from the numbers below by a fixed rule.",
        ),
        _summary(result),
        note(result["verdict_rule"]),
        *(_section(one, panels.get(one["key"], ())) for one in result["properties"]),
        _settings(result),
    )
    return document("headwise: properties of retrieval heads", body, styles=[STYLE])


def inline_svg(draw: Callable[[], Figure], prefix: str, label: str) -> Html:
    """A figure as an SVG element: see-through, in the page's colours.

    Args:
        draw: Makes the figure.
        prefix: In front of all its ids, so that they are unlike those of any other figure.
        label: What it shows, for readers who cannot see it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        write_figure(lambda: _see_through(draw()), path)
        drawing = path.read_text("utf-8")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(
        r' d="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), drawing
    )  # a hundredth of a point is enough
    drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)
    drawing = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", drawing)
    for name in DRAWN:
        drawing = re.sub(re.escape(THEME[name][0]), f"var(--{name})", drawing, flags=re.IGNORECASE)
    drawing = drawing.replace("#000000", "var(--ink)")
    return Html(drawing.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1))


def _see_through(figure: Figure) -> Figure:
    """Without white grounds, which would be holes in a dark page."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    return figure


def _verdict(verdict: str) -> Html:
    return tag("span", MARKS.get(verdict, ""), " ", verdict, class_=f"verdict {slug(verdict)}")


def _summary(result: Data) -> Html:
    rows = []
    for one in result["properties"]:
        paper = "; ".join(f"{row['what']}: {row['value']}" for row in one["paper"][:2])
        name = tag("a", tag("b", one["title"]), href=f"#{slug(one['key'])}")
        rows.append((name, _verdict(one["verdict"]), one["found"], paper))
    return tag("section", table(("Property", "Verdict", "Here", "In the paper"), rows))


def _section(one: Data, panels: Sequence[Panel]) -> Html:
    key = slug(one["key"])
    paper = [
        tag("li", row["what"], ": ", tag("b", row["value"]), " ", tag("span", f"({row['source']})", class_="soft"))
        for row in one["paper"]
    ]
    return section(
        one["title"],
        tag("p", one["claim"]),
        tag("p", tag("b", "Here:"), f" {one['found']}."),
        tag("div", tag("b", "In the paper"), tag("ul", *paper), class_="paper"),
        figures(*(_figure(panel, f"{key}{i}") for i, panel in enumerate(panels))),
        _samples(one["data"]),
        _checks(one["checks"]),
        *map(note, one["notes"]),
        id=key,
        aside=_verdict(one["verdict"]),
    )


def _figure(panel: Panel, prefix: str) -> Html:
    """A figure in its own size where there is room, narrower where there is not, with its caption."""
    drawing = inline_svg(panel.draw, prefix, panel.caption)
    found = re.search(r'viewBox="0 0 ([0-9.]+)', drawing)
    width = float(found[1]) * SCALE if found else 400
    return tag("figure", drawing, tag("figcaption", panel.caption), style=f"flex:0 1 {width:.0f}px")


def _checks(checks: Sequence[Data]) -> Html:
    """Every check behind the verdict; closed until asked for."""
    signs = {True: "✓", False: "✗", None: "–"}
    rows = [
        (
            join(tag("span", signs[check["holds"]], class_="mark"), " ", check["model"]),
            f"{check['what']}{'' if check['main'] else ' (supporting)'}",
            f"{check['value']}{': ' + check['note'] if check['note'] else ''}",
            check["rule"],
        )
        for check in checks
    ]
    known = [check for check in checks if check["holds"] is not None]
    passed = sum(check["holds"] for check in known)
    summary = f"{passed} of {len(known)} checks pass, {len(checks) - len(known)} not measured"
    return details(summary, table(("Model", "Check", "Here", "Rule"), rows))


def _samples(data: Data) -> Html:
    """What a model writes with and without heads: the first question of each kind of the first model that was asked without heads."""
    names = {"gold": "right", "none": "whole model", "random": "random heads ablated", "top": "strongest heads ablated"}
    for model in data.get("models", ()):
        shown = [task for task in model.get("tasks", ()) if task["scope"] != "all" and "top" in task["means"] and task["samples"]]
        if shown:
            return details(f"What {model['name']} writes", *(_quote(task["samples"][0], names) for task in shown))
    return Html()


def _quote(sample: Data, names: Mapping[str, str]) -> Html:
    said = [tag("p", tag("b", f"{name}:"), " ", sample[key]) for key, name in names.items() if key in sample]
    return tag("blockquote", note(sample["context"]) if sample["context"] else "", tag("p", sample["question"]), *said)


def _settings(result: Data) -> Html:
    real = ((f"real models: {name}", value) for name, value in result.get("real_settings", {}).items())
    rows = [*result["settings"].items(), *real, *(("version of " + name, value) for name, value in result["versions"].items())]
    return section("Settings", note(result["paper"]), table(("Setting", "Value"), rows))
