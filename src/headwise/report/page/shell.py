"""The document every page shares: escaping, head, theme, style, data, and the scripts that draw charts. Text out, no template files."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwise.heads.files import write_atomically
from headwise.heads.plain import plain
from headwise.report.canvas import BLUE, GREY, INK, RED

# Colours of pages and of figures in them, on light and on dark ground. The named ones are Okabe and Ito's.
THEME = {
    "red": (RED, "#F2813A"),
    "blue": (BLUE, "#56B4E9"),
    "grey": (GREY, "#9AA3AB"),
    "green": ("#009E73", "#2CC79A"),
    "orange": ("#E69F00", "#F0B63C"),
    "purple": ("#CC79A7", "#E0A3C4"),
    "sky": ("#56B4E9", "#9AD0F2"),
    "ink": (INK, "#E8E6E1"),
    "page": ("#FBFAF7", "#14171A"),
    "card": ("#FFFFFF", "#1C2024"),
    "line": ("#DDD9D0", "#343A40"),
    "soft": ("#5B5F63", "#A5ADB4"),
    "good": ("#00724F", "#4CD3A5"),
    "mid": ("#8A6100", "#F0B63C"),
    "bad": ("#B03A00", "#FF8F5A"),
}
CHART = 'class="chart"'  # quotes of text are escaped, so only `parts.figure` can put this into a body


class Html(str):
    """Markup that may stand in a page as it is. Every other value is escaped where it enters one."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as markup: escaped, unless it is markup already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(*values: object) -> Html:
    """All values as markup, one after another."""
    return Html("".join(map(text, values)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        *children: text, which is escaped, or markup.
        **attributes: `class_` is class, `data_name` is data-name; None and False are left out, True has no value.
    """
    named = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        named += f" {label}" if value is True else f' {label}="{text(str(value))}"'
    return Html(f"<{name}{named}>{join(*children)}</{name}>")


def slug(value: str) -> str:
    """A name for files and ids: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", value).strip("-.") or "figure"


def data_tag(data: Any, **attributes: object) -> Html:
    """JSON in a script element that runs nothing. `<` is written as an escape, so no text inside can end the element."""
    return tag("script", Html(to_json(data).replace("<", "\\u003c")), type="application/json", **attributes)


def to_json(data: Any) -> str:
    """Compact JSON of plain data and numpy values; NaN and infinities become null."""
    return json.dumps(plain(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def document(
    title: str,
    body: Html,
    *,
    data: Mapping[str, Any] | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """The whole page. It runs scripts only if it needs them: if it has charts, data or scripts of its own.

    Args:
        title: of the window.
        body: everything that can be seen.
        data: for charts (by name, see `charts.Chart`) and scripts, which read it as `headwise.data`.
        styles: more CSS, as text.
        scripts: more JavaScript, as text; it runs after the shared one.

    Returns:
        HTML that loads nothing from elsewhere.
    """
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark"><meta name="generator" content="headwise">'),
        tag("title", title),
        tag("style", Html("\n".join((_colours(), resource("page.css"), *styles)))),
    )
    code = []
    if data is not None or scripts or CHART in body:
        code.append(data_tag(data or {}, id="page-data"))
        if CHART in body:
            code.append(_script(_vega()))
        code += [_script(resource("page.js")), *map(_script, scripts)]
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{tag("main", body)}{join(*code)}</body></html>\n'


def write_document(path: Path, page: str) -> Path:
    """Write a page, replacing an older one whole or not at all.

    Args:
        path: of the page.
        page: all of its HTML.

    Returns:
        `path`.

    Raises:
        HeadFileError: the file cannot be written.
    """
    write_atomically(path, page.encode())
    return path


@cache
def resource(name: str) -> str:
    """A style sheet or script of this package."""
    return (files("headwise.report.page") / name).read_text("utf-8")


def _colours() -> str:
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in THEME.items()) for i in (0, 1))
    return (
        f":root{{color-scheme:light;{light}}}:root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
    )


def _script(code: str) -> Html:
    return tag("script", Html(re.sub(r"</(script)", r"<\\/\1", code, flags=re.IGNORECASE)))


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in this order, which they need; without the lines that would make a debugger ask for their sources."""
    code = "\n".join(resource(f"vendor/{name}.min.js") for name in ("vega", "vega-lite", "vega-embed"))
    return re.sub(r"^//# sourceMappingURL=.*$", "", code, flags=re.MULTILINE)
