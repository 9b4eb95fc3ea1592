"""The page of `headwise lab properties`: one HTML file that needs nothing else, with every figure inside it. Plain data in, text out."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.core.headfile import write_atomically
from headwise.report.canvas import BLUE, GREY, INK, RED, write_figure
from headwise.report.properties_figures import panels_of
from headwise.report.properties_panels import GREEN, ORANGE, PURPLE, SKY, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
SCALE = 1.4  # pixels of a page per point of a figure
MARKS = {"holds": "✓", "partly": "◐", "does not hold": "✗", "not measured": "–"}
# Colours of the figures and of the page: on light and on dark ground.
THEME = {
    "red": (RED, "#F2813A"),
    "blue": (BLUE, "#56B4E9"),
    "grey": (GREY, "#9AA3AB"),
    "green": (GREEN, "#2CC79A"),
    "orange": (ORANGE, "#F0B63C"),
    "purple": (PURPLE, "#E0A3C4"),
    "sky": (SKY, "#9AD0F2"),
    "ink": (INK, "#E8E6E1"),
    "page": ("#FBFAF7", "#14171A"),
    "card": ("#FFFFFF", "#1C2024"),
    "line": ("#DDD9D0", "#343A40"),
    "soft": ("#5B5F63", "#A5ADB4"),
    "good": ("#00724F", "#4CD3A5"),
    "mid": ("#8A6100", "#F0B63C"),
    "bad": ("#B03A00", "#FF8F5A"),
}
DRAWN = ("red", "blue", "grey", "green", "orange", "purple", "sky", "ink")  # those that occur in figures
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:74rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0 .4rem}h2{font-size:1.3rem;margin:0}p{margin:.5rem 0;max-width:46rem}
a{color:inherit}.soft{color:var(--soft);font-size:.9rem}
table{border-collapse:collapse;width:100%;font-size:.94rem}th{text-align:left;color:var(--soft);font-weight:600}
th,td{padding:.5rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
section{background:var(--card);border:1px solid var(--line);border-radius:.8rem;padding:1.1rem 1.1rem 1.3rem;margin:1.2rem 0}
section>header{display:flex;flex-wrap:wrap;gap:.3rem .9rem;align-items:center}
.verdict{display:inline-block;white-space:nowrap;font-weight:650;font-size:.9rem;
border:1.5px solid currentColor;border-radius:2rem;padding:.05rem .7rem}
.holds{color:var(--good)}.partly{color:var(--mid)}.does-not-hold{color:var(--bad)}.not-measured{color:var(--soft)}
.panels{display:flex;flex-wrap:wrap;gap:1.2rem;margin:1rem 0 .4rem;align-items:flex-start}
figure{margin:0;min-width:min(100%,13rem)}
figure svg{display:block;width:100%;height:auto;color:var(--ink)}figcaption{font-size:.84rem;color:var(--soft);margin-top:.3rem}
details{margin-top:.7rem}summary{cursor:pointer;font-weight:600}
.paper{border-left:3px solid var(--blue);padding:.1rem 0 .1rem .8rem;margin:.7rem 0}.paper ul{margin:.2rem 0;padding-left:1.1rem}
blockquote{margin:.6rem 0;padding:.5rem .8rem;border-left:3px solid var(--line);font-size:.9rem}
blockquote p{max-width:none;margin:.25rem 0;overflow-wrap:anywhere}pre{overflow:auto;font-size:.82rem}.mark{font-weight:700}
@media(max-width:46rem){table.cards thead{display:none}table.cards tr{display:block;padding:.55rem 0;border-bottom:1px solid var(--line)}
table.cards td{display:block;border:0;padding:.1rem 0}table.cards td[data-name]::before{content:attr(data-name) ": ";color:var(--soft)}}
"""


def write_page(result: Data, path: Path, pictures: Path | None = None) -> list[Path]:
    """Write the page, replacing an older one whole; with `pictures` every figure as PNG into that folder, too. Returns all paths."""
    panels = {one["key"]: panels_of(one["key"], one["data"]) for one in result["properties"]}
    write_atomically(path, page(result, panels).encode())
    written = [path]
    if pictures is not None:
        for panel in (panel for found in panels.values() for panel in found):
            written.append(pictures / f"{_slug(panel.name)}.png")
            write_figure(panel.draw, written[-1])
    return written


def page(result: Data, panels: Mapping[str, Sequence[Panel]]) -> str:
    """The whole document."""
    names = ", ".join(model["name"] for model in result["models"])
    body = [
        "<h1>Retrieval heads of small models: five properties, checked</h1>",
        f"<p>Models: {_text(names)}. What a verdict means is a fixed rule applied to the numbers below, never an opinion.</p>",
        _summary(result),
        f'<p class="soft">{_text(result["verdict_rule"])}</p>',
        *(_section(one, panels.get(one["key"], ())) for one in result["properties"]),
        _settings(result),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>headwise: properties of retrieval heads</title>'
    )
    return f"{head}<style>{_colours()}{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"


def inline_svg(draw: Callable[[], Figure], prefix: str, label: str) -> str:
    """A figure as an SVG element: see-through, in the page's colours, its ids unlike those of any other figure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        write_figure(lambda: _see_through(draw()), path)
        text = path.read_text("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' d="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), text)  # a hundredth of a point is enough
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for name in DRAWN:
        text = re.sub(re.escape(THEME[name][0]), f"var(--{name})", text, flags=re.IGNORECASE)
    text = text.replace("#000000", "var(--ink)")
    return text.replace("<svg", f'<svg role="img" aria-label="{_text(label)}"', 1)


def _see_through(figure: Figure) -> Figure:
    """Without white grounds, which would be holes in a dark page."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    return figure


def _colours() -> str:
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in THEME.items()) for i in (0, 1))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _slug(text: str) -> str:
    """A name for files and ids: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.") or "figure"


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {_slug(verdict)}">{MARKS.get(verdict, "")} {_text(verdict)}</span>'


def _summary(result: Data) -> str:
    rows = []
    for one in result["properties"]:
        paper = "; ".join(f"{row['what']}: {row['value']}" for row in one["paper"][:2])
        rows.append(
            f'<tr><td><a href="#{_slug(one["key"])}"><b>{_text(one["title"])}</b></a></td><td>{_verdict(one["verdict"])}</td>'
            f'<td data-name="here">{_text(one["found"])}</td><td data-name="paper">{_text(paper)}</td></tr>'
        )
    head = "<thead><tr><th>Property</th><th>Verdict</th><th>Here</th><th>In the paper</th></tr></thead>"
    return f'<section><table class="cards">{head}<tbody>{"".join(rows)}</tbody></table></section>'


def _section(one: Data, panels: Sequence[Panel]) -> str:
    key = _slug(one["key"])
    figures = "".join(_figure(panel, f"{key}{i}") for i, panel in enumerate(panels))
    paper = "".join(
        f"<li>{_text(row['what'])}: <b>{_text(row['value'])}</b> <span class=soft>({_text(row['source'])})</span></li>"
        for row in one["paper"]
    )
    notes = "".join(f'<p class="soft">{_text(note)}</p>' for note in one["notes"])
    return (
        f'<section id="{key}"><header><h2>{_text(one["title"])}</h2>{_verdict(one["verdict"])}</header>'
        f"<p>{_text(one['claim'])}</p><p><b>Here:</b> {_text(one['found'])}.</p>"
        f'<div class="paper"><b>In the paper</b><ul>{paper}</ul></div>'
        f'<div class="panels">{figures}</div>{_samples(one["data"])}{_checks(one["checks"])}{notes}</section>'
    )


def _figure(panel: Panel, prefix: str) -> str:
    """A figure in its own size where there is room, narrower where there is not, with its caption."""
    drawing = inline_svg(panel.draw, prefix, panel.caption)
    found = re.search(r'viewBox="0 0 ([0-9.]+)', drawing)
    width = float(found[1]) * SCALE if found else 400
    return f'<figure style="flex:0 1 {width:.0f}px">{drawing}<figcaption>{_text(panel.caption)}</figcaption></figure>'


def _checks(checks: Sequence[Data]) -> str:
    """Every check behind the verdict; closed until asked for."""
    signs = {True: "✓", False: "✗", None: "–"}
    rows = "".join(
        f'<tr><td><span class="mark">{signs[check["holds"]]}</span> {_text(check["model"])}</td>'
        f"<td>{_text(check['what'])}{'' if check['main'] else ' (supporting)'}</td>"
        f'<td data-name="here">{_text(check["value"])}{_text(": " + check["note"]) if check["note"] else ""}</td>'
        f'<td data-name="rule">{_text(check["rule"])}</td></tr>'
        for check in checks
    )
    head = "<thead><tr><th>Model</th><th>Check</th><th>Here</th><th>Rule</th></tr></thead>"
    known = [check for check in checks if check["holds"] is not None]
    passed = sum(check["holds"] for check in known)
    return (
        f"<details><summary>{passed} of {len(known)} checks pass, {len(checks) - len(known)} not measured</summary>"
        f'<table class="cards">{head}<tbody>{rows}</tbody></table></details>'
    )


def _samples(data: Data) -> str:
    """What a model writes with and without heads: the first question of each kind of the first model that was asked without heads."""
    names = {"gold": "right", "none": "whole model", "random": "without random heads", "top": "without the strongest"}
    for model in data.get("models", ()):
        shown = [task for task in model.get("tasks", ()) if task["scope"] != "all" and "top" in task["means"] and task["samples"]]
        if shown:
            quotes = [_quote(task["samples"][0], names) for task in shown]
            return f"<details><summary>What {_text(model['name'])} writes</summary>{''.join(quotes)}</details>"
    return ""


def _quote(sample: Data, names: Mapping[str, str]) -> str:
    said = "".join(f"<p><b>{name}:</b> {_text(sample[key])}</p>" for key, name in names.items() if key in sample)
    context = f'<p class="soft">{_text(sample["context"])}</p>' if sample["context"] else ""
    return f"<blockquote>{context}<p>{_text(sample['question'])}</p>{said}</blockquote>"


def _settings(result: Data) -> str:
    rows = [*result["settings"].items(), *(("version of " + name, value) for name, value in result["versions"].items())]
    listed = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows)
    return (
        f'<section><h2>Settings</h2><p class="soft">{_text(result["paper"])}</p><table><tbody>{listed}</tbody></table></section>'
    )
