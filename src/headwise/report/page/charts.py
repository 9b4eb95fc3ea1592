"""Charts for pages: Vega-Lite specifications, made with altair. Colours are names of the theme (`$red`), which the page's script fills in.

A table of data is column -> values, all equally long; columns have plain names (letters, digits, underscores). Missing values are None or NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwise.heads.errors import HeadwiseError

Table = Mapping[str, Sequence[Any]]
SERIES = ("$red", "$blue", "$green", "$purple", "$orange", "$sky", "$ink")  # Okabe and Ito's palette, in this order
HEAT, GRID = "heatmap", "ramp"
"""Colour scales of the page: magma, from the page's ground to strong colour, for scores; cividis for shares from 0 to 1."""
TABLE, ROW = "table", 24  # pixels of a row of cells


@dataclass(frozen=True)
class Chart:
    """A specification, its data, and what to call it.

    spec: Vega-Lite, reading the data set `table`. data: the table, or the name of one in the page's data.
    columns: column -> its heading, for the table view. label: one sentence for who cannot see it. name: of the file it is saved to.
    """

    spec: Mapping[str, Any]
    data: Table | str
    columns: Mapping[str, str]
    label: str
    name: str


def heat_map(
    data: Table | str,
    columns: Mapping[str, str],
    *,
    x: str,
    y: str,
    value: str,
    label: str,
    name: str,
    domain: tuple[float, float] | None = None,
    scheme: str = HEAT,
    numbers: str | None = None,
    height: int | None = None,
    groups: int = 1,
    cursor: bool = False,
    legend: bool = True,
    axes: bool = True,
) -> Chart:
    """Cells of two ordinal axes (first row on top), coloured by value; a cell without one is grey and crossed out.

    numbers: a format as `.2f` to write values into cells. groups: a line after every so many columns, if more than 1.
    cursor: mark one cell, by the parameters `cursor_x` and `cursor_y`.
    """
    alt = _altair()
    limits = alt.Undefined if domain is None else list(domain)
    across = alt.X(f"{x}:O", title=columns[x], axis=_cell_axis(alt, axes), scale=_cells(alt))
    down = alt.Y(f"{y}:O", title=columns[y], axis=_cell_axis(alt, axes), scale=_cells(alt))
    colour = alt.Color(
        f"{value}:Q",
        title=columns[value],
        scale=alt.Scale(range=scheme, domain=limits),
        legend=alt.Legend(orient="top", direction="horizontal", gradientLength=160, gradientThickness=10) if legend else None,
    )
    tips = _tooltip(alt, columns)
    base = alt.Chart(alt.NamedData(TABLE)).encode(x=across, y=down, tooltip=tips)
    known = f"isValid(datum.{value})"
    missing = base.transform_filter(f"!isValid(datum.{value})").encode(tooltip=_tooltip(alt, {c: columns[c] for c in (y, x)}))
    corner = 1.5 if axes else 0
    layers = [
        base.transform_filter(known)
        .mark_rect(cornerRadius=corner, cursor="pointer" if cursor else "default")
        .encode(color=colour),
        missing.mark_rect(cornerRadius=corner, color="$line", opacity=0.6),
        missing.mark_text(text="×", color="$soft", fontSize=9),
    ]
    if numbers:
        layers.append(base.transform_filter(known).mark_text(fontSize=11).encode(**_written(alt, value, numbers, domain)))
    if groups > 1:
        first = f"datum.{x} > 0 && datum.{x} % {groups} == 0"
        edges = alt.Chart(alt.NamedData(TABLE)).transform_filter(first).transform_aggregate(count="count()", groupby=[x])
        edge = alt.X(f"{x}:O", bandPosition=0, scale=_cells(alt), axis=_cell_axis(alt, axes))
        layers.append(edges.mark_rule(color="$grey", opacity=0.7).encode(x=edge))
    if cursor:
        frame = base.transform_filter(_at_cursor(x, y)).mark_rect(fillOpacity=0, stroke="$blue", strokeWidth=3, cornerRadius=2)
        layers.append(frame)
    made = _sized(alt, layers, height or ROW * _distinct(data, y, label))
    if cursor:
        made = made.add_params(*_cursor_params(alt))
    return Chart(_spec(made), data, columns, label, name)


def scatter(
    data: Table | str,
    columns: Mapping[str, str],
    *,
    x: str,
    y: str,
    label: str,
    name: str,
    series: str | None = None,
    limits: Sequence[float] = (),
    diagonal: bool = False,
    joined: bool = False,
    log_x: bool = False,
    x_domain: tuple[float, float] | None = None,
    y_domain: tuple[float, float] | None = None,
    cursor: tuple[str, str] | None = None,
    height: int = 280,
) -> Chart:
    """One point per row. limits: y values marked by a dashed line. diagonal: the line x = y. joined: points are joined in the order of x.

    cursor: two columns; the point where they equal the parameters `cursor_x` and `cursor_y` is ringed.
    """
    alt = _altair()
    across = alt.X(f"{x}:Q", title=columns[x], scale=_scale(alt, x_domain, log_x))
    base = alt.Chart(alt.NamedData(TABLE)).transform_filter(f"isValid(datum.{x}) && isValid(datum.{y})")
    base = base.encode(x=across, y=alt.Y(f"{y}:Q", title=columns[y], scale=_scale(alt, y_domain)), tooltip=_tooltip(alt, columns))
    colour = _series(alt, data, series, columns) if series else alt.value("$red")
    layers = _limit_lines(alt, limits)
    if diagonal:
        layers.append(_diagonal(alt, data, x, y))
    if joined:
        layers.append(base.mark_line(strokeWidth=1.5, opacity=0.7).encode(color=colour))
    layers.append(base.mark_circle(size=42, opacity=0.65, cursor="pointer" if cursor else "default").encode(color=colour))
    made = _sized(alt, layers, height)
    if cursor:
        ring = base.transform_filter(_at_cursor(*cursor)).mark_point(
            size=130, stroke="$blue", strokeWidth=3, filled=False, opacity=1
        )
        made = _sized(alt, [*layers, ring], height)
        made = made.add_params(*_cursor_params(alt))
    return Chart(_spec(made), data, columns, label, name)


def lines(
    data: Table | str,
    columns: Mapping[str, str],
    *,
    x: str,
    y: str,
    label: str,
    name: str,
    series: str | None = None,
    low: str | None = None,
    high: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    x_values: Sequence[float] | None = None,
    x_domain: tuple[float, float] | None = None,
    y_domain: tuple[float, float] | None = None,
    limits: Sequence[float] = (),
    colours: Mapping[str, str] | None = None,
    height: int = 260,
) -> Chart:
    """One line per series, with a band from `low` to `high` where these columns are known. x_values: the ticks to show.

    colours: series -> colour (`$red`, ...), else the palette in the order of the data. limits: y values marked by a dashed line.
    """
    alt = _altair()
    ticks = alt.Axis(values=list(x_values)) if x_values is not None else alt.Undefined
    across = alt.X(f"{x}:Q", title=columns[x], axis=ticks, scale=_scale(alt, x_domain, log_x))
    upright = alt.Y(f"{y}:Q", title=columns[y], scale=_scale(alt, y_domain, log_y))
    base = (
        alt.Chart(alt.NamedData(TABLE)).transform_filter(f"isValid(datum.{y})").encode(x=across, tooltip=_tooltip(alt, columns))
    )
    colour = _series(alt, data, series, columns, colours) if series else alt.value("$red")
    layers = _limit_lines(alt, limits)
    if low and high:
        bounded = base.transform_filter(f"isValid(datum.{low}) && isValid(datum.{high})")
        layers.append(bounded.mark_area(opacity=0.18).encode(y=alt.Y(f"{low}:Q", title=columns[y]), y2=f"{high}:Q", color=colour))
    layers.append(base.mark_line(strokeWidth=2).encode(y=upright, color=colour))
    layers.append(base.mark_circle(size=46, opacity=1).encode(y=upright, color=colour))
    return Chart(_spec(_sized(alt, layers, height)), data, columns, label, name)


def _altair() -> Any:
    import altair

    return altair


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict()
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return spec


def _written(alt: Any, value: str, format: str, domain: tuple[float, float] | None) -> dict[str, Any]:
    """Numbers in cells, dark on the light half of the scale."""
    light = f"datum.{value} > {_middle(domain)}"
    return {"text": alt.Text(f"{value}:Q", format=format), "color": alt.condition(light, alt.value("$over"), alt.value("$under"))}


def _cells(alt: Any) -> Any:
    """A scale of cells with thin gaps."""
    return alt.Scale(paddingInner=0.05, paddingOuter=0.02)


def _at_cursor(x: str, y: str) -> str:
    return f"datum.{x} === cursor_x && datum.{y} === cursor_y"


def _cursor_params(alt: Any) -> list[Any]:
    return [alt.param(name=name, value=None) for name in ("cursor_x", "cursor_y")]


def _distinct(data: Table | str, column: str, label: str) -> int:
    if isinstance(data, str):
        raise HeadwiseError(f"give a height for {label!r}: how many rows the page's data have is not known here")
    return len(set(data[column]))


def _sized(alt: Any, layers: Sequence[Any], height: int) -> Any:
    return alt.layer(*layers).properties(width="container", height=height)


def _tooltip(alt: Any, columns: Mapping[str, str]) -> list[Any]:
    for name in columns:
        if not re.fullmatch(r"\w+", name):
            raise HeadwiseError(f"a column of a chart has a plain name; got {name!r}")
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in columns.items()]


def _scale(alt: Any, domain: tuple[float, float] | None, log: bool = False) -> Any:
    limits = alt.Undefined if domain is None else list(domain)
    return alt.Scale(type="log", domain=limits, nice=False) if log else alt.Scale(domain=limits, nice=domain is None)


def _cell_axis(alt: Any, shown: bool) -> Any:
    return alt.Axis(labelAngle=0, labelOverlap=True, domain=False, ticks=False) if shown else None


def _series(
    alt: Any, data: Table | str, series: str, columns: Mapping[str, str], colours: Mapping[str, str] | None = None
) -> Any:
    """Colours in the order in which the series occur in the data."""
    if isinstance(data, str):
        raise HeadwiseError("a chart with series needs its own data, so that their order is known")
    names = list(dict.fromkeys(data[series]))
    shown = [(colours or {}).get(name, SERIES[i % len(SERIES)]) for i, name in enumerate(names)]
    legend = alt.Legend(orient="top", title=None, columns=2 if len(names) > 3 else len(names), labelLimit=260)
    return alt.Color(f"{series}:N", title=columns[series], scale=alt.Scale(domain=names, range=shown), legend=legend, sort=None)


def _limit_lines(alt: Any, limits: Sequence[float]) -> list[Any]:
    """Dashed lines across the chart at these values of y."""
    if not limits:
        return []
    place = alt.Y("limit:Q")
    rows = alt.Data(values=[{"limit": limit} for limit in limits])
    rule = alt.Chart(rows).mark_rule(color="$grey", strokeDash=[4, 4]).encode(y=place)
    words = alt.Chart(rows).mark_text(color="$soft", align="right", dx=-2, dy=-6)
    return [rule, words.encode(text="limit:Q", y=place, x=alt.value("width"))]


def _diagonal(alt: Any, data: Table | str, x: str, y: str) -> Any:
    """The line x = y over the range that both columns have."""
    known = [] if isinstance(data, str) else [v for name in (x, y) for v in data[name] if v is not None and v == v]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    rows = alt.Data(values=[{x: low, y: low}, {x: high, y: high}])
    return alt.Chart(rows).mark_line(color="$grey", strokeDash=[4, 4]).encode(x=f"{x}:Q", y=f"{y}:Q")


def _middle(domain: tuple[float, float] | None) -> float:
    return 0.5 if domain is None else (domain[0] + domain[1]) / 2
