"""Charts for pages: Vega-Lite specifications as plain data. Colours are names of the theme (`$red`), which the page's script fills in.

A table of data is column -> values, all equally long; columns have plain names (letters, digits, underscores). Missing values are None or NaN.
The pages draw them with the scripts in `page/vendor`; the words are those of https://vega.github.io/vega-lite/docs/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwise.heads.errors import HeadwiseError

Table = Mapping[str, Sequence[Any]]
Spec = dict[str, Any]
NARROW = 32  # letters of all names that a legend can show side by side on a telephone
SERIES = ("$red", "$blue", "$green", "$purple", "$orange", "$sky", "$ink")  # Okabe and Ito's palette, in this order
SHAPES = ("circle", "square", "diamond", "triangle-up")
HEAT, GRID, SIGNED = "heatmap", "ramp", "diverging"
"""Colour scales of the page: magma, from the page's ground to strong colour, for scores; cividis for shares from 0 to 1; from blue over the page's
ground to red for values below and above 0, with the same number at both ends of the domain."""
TABLE, ROW = "table", 24  # name of the data set; pixels of a row of cells
YES = "yes"  # in a column that says which cells are framed
CELLS = {"paddingInner": 0.05, "paddingOuter": 0.02}  # a scale of cells with thin gaps
CELL_AXIS = {"labelAngle": 0, "labelOverlap": True, "domain": False, "ticks": False}
DASHED = [4, 4]


@dataclass(frozen=True)
class Chart:
    """A specification, its data, and what to call it.

    Attributes:
        spec: Vega-Lite, reading the data set `table`.
        data: the table, or the name of one in the page's data.
        columns: column -> its heading, for the table view.
        label: one sentence that says what the chart shows, for readers who cannot see it.
        name: of the file that the chart is saved to.
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
    marked: str | None = None,
    cursor: bool = False,
    legend: bool = True,
    axes: bool = True,
) -> Chart:
    """Cells of two ordinal axes (first row on top), coloured by value; a cell without one is grey and crossed out.

    Args:
        data: the table, or the name of one in the page's data; then `height` is needed.
        columns: column -> its heading.
        x: column across.
        y: column down.
        value: column of the colours.
        label: one sentence for readers who cannot see the chart.
        name: of the file that the chart is saved to.
        domain: values at the two ends of the colour scale; those of the data if None.
        scheme: `HEAT`, `GRID` or `SIGNED`.
        numbers: a format as `.2f` to write values into cells.
        height: pixels; `ROW` per row if None.
        groups: a line after every so many columns, if more than 1.
        marked: a column; cells in which it is `YES` are framed.
        cursor: mark one cell, by the parameters `cursor_x` and `cursor_y`.
        legend: show the colour scale.
        axes: show both axes.

    Raises:
        HeadwiseError: a column's name is not plain, or the height cannot be known.
    """
    axis = CELL_AXIS if axes else None
    place = {side: _field(column, "ordinal", columns, axis=axis, scale=CELLS) for side, column in (("x", x), ("y", y))}
    colour = _field(value, "quantitative", columns, **_gradient(scheme, domain, legend))
    known, tips, corner = f"isValid(datum.{value})", {"tooltip": _tooltip(columns)}, 1.5 if axes else 0
    layers = [_layer("rect", place | tips | {"color": colour}, known, cornerRadius=corner, cursor=_pointer(cursor))]
    layers += _crossed_out(place | {"tooltip": _tooltip({c: columns[c] for c in (y, x)})}, f"!{known}", corner)
    if numbers:
        layers.append(_layer("text", place | tips | _written(value, numbers, domain), known, fontSize=11))
    if groups > 1:
        layers.append(_edges(x, groups, axis))
    frame = {"fillOpacity": 0, "cornerRadius": 2}
    if marked:
        layers.append(_layer("rect", place | tips, f"datum.{marked} === '{YES}'", **frame, stroke="$ink", strokeWidth=2.5))
    if cursor:
        layers.append(_layer("rect", place | tips, _at_cursor(x, y), **frame, stroke="$blue", strokeWidth=3))
    tall = ROW * _distinct(data, y, label) if height is None else height
    return Chart(_spec(layers, tall, cursor), data, columns, label, name)


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
    """One point per row.

    Args:
        data: the table, or the name of one in the page's data.
        columns: column -> its heading.
        x: column across.
        y: column up.
        label: one sentence for readers who cannot see the chart.
        name: of the file that the chart is saved to.
        series: column that tells the colours apart; needs its own `data`.
        limits: y values marked by a dashed line.
        diagonal: draw the line x = y.
        joined: join the points in the order of x.
        log_x: a logarithmic axis across.
        x_domain: ends of the axis across; those of the data if None.
        y_domain: ends of the upright axis; those of the data if None.
        cursor: two columns; the point where they equal the parameters `cursor_x` and `cursor_y` is ringed.
        height: pixels.

    Raises:
        HeadwiseError: a column's name is not plain, or there are series without their own data.
    """
    across = _field(x, "quantitative", columns, scale=_scale(x_domain, log_x))
    upright = _field(y, "quantitative", columns, scale=_scale(y_domain))
    colour = _series(data, series, columns) if series else {"value": "$red"}
    base, known = {"x": across, "y": upright, "tooltip": _tooltip(columns)}, f"isValid(datum.{x}) && isValid(datum.{y})"
    layers = _limit_lines(limits)
    if diagonal:
        layers.append(_diagonal(data, x, y))
    if joined:
        layers.append(_layer("line", base | {"color": colour}, known, strokeWidth=1.5, opacity=0.7))
    layers.append(_layer("circle", base | {"color": colour}, known, size=42, opacity=0.65, cursor=_pointer(bool(cursor))))
    if cursor:
        ring = {"size": 130, "stroke": "$blue", "strokeWidth": 3, "filled": False, "opacity": 1}
        layers.append(_layer("point", base, known, _at_cursor(*cursor), **ring))
    return Chart(_spec(layers, height, bool(cursor)), data, columns, label, name)


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
    """One line per series, with a band from `low` to `high` where these columns are known.

    Args:
        data: the table, or the name of one in the page's data.
        columns: column -> its heading.
        x: column across.
        y: column up.
        label: one sentence for readers who cannot see the chart.
        name: of the file that the chart is saved to.
        series: column that tells the lines apart; needs its own `data`.
        low: column of the band's lower end.
        high: column of the band's upper end.
        log_x: a logarithmic axis across.
        log_y: a logarithmic upright axis.
        x_values: the ticks to show.
        x_domain: ends of the axis across; those of the data if None.
        y_domain: ends of the upright axis; those of the data if None.
        limits: y values marked by a dashed line.
        colours: series -> colour (`$red`, ...), else the palette in the order of the data.
        height: pixels.

    Raises:
        HeadwiseError: a column's name is not plain, or there are series without their own data.
    """
    across = _field(x, "quantitative", columns, scale=_scale(x_domain, log_x))
    if x_values is not None:
        whole = {"format": ",d"} if all(float(value).is_integer() for value in x_values) else {}
        across["axis"] = {"values": list(x_values)} | whole
    upright = _field(y, "quantitative", columns, scale=_scale(y_domain, log_y))
    colour = _series(data, series, columns, colours) if series else {"value": "$red"}
    base, known = {"x": across, "tooltip": _tooltip(columns), "color": colour}, f"isValid(datum.{y})"
    layers = _limit_lines(limits)
    if low and high:
        band = {"y": {"field": low, "type": "quantitative", "title": columns[y]}, "y2": {"field": high}}
        layers.append(_layer("area", base | band, known, f"isValid(datum.{low}) && isValid(datum.{high})", opacity=0.18))
    layers.append(_layer("line", base | {"y": upright}, known, strokeWidth=2))
    layers.append(_layer("point", base | {"y": upright} | _shapes(colour), known, size=46, opacity=1, filled=True))
    return Chart(_spec(layers, height), data, columns, label, name)


def ranges(
    data: Table,
    columns: Mapping[str, str],
    *,
    x: str,
    low: str,
    high: str,
    y: str,
    series: str,
    label: str,
    name: str,
    x_domain: tuple[float, float] | None = None,
    limits: Sequence[float] = (),
) -> Chart:
    """One point per category (downwards) and series, with a line from `low` to `high`; series differ in colour and shape.

    Args:
        data: the table.
        columns: column -> its heading.
        x: column across.
        low: column of the lower ends.
        high: column of the upper ends.
        y: column of the categories, which stay in the order of the data.
        series: column that tells the points of a category apart.
        label: one sentence for readers who cannot see the chart.
        name: of the file that the chart is saved to.
        x_domain: ends of the axis across; those of the data if None.
        limits: x values marked by a dashed line.

    Raises:
        HeadwiseError: a column's name is not plain.
    """
    colour = _series(data, series, columns)
    shape: Spec = colour | {"scale": {"domain": colour["scale"]["domain"], "range": list(SHAPES)}}
    place: Spec = {"y": _field(y, "nominal", columns, sort=None, axis={"labelLimit": 140, "domain": False, "ticks": False})}
    place |= {"yOffset": {"field": series, "type": "nominal", "sort": None}, "color": colour, "tooltip": _tooltip(columns)}
    across = _field(x, "quantitative", columns, scale=_scale(x_domain))
    span = {"x": across | {"field": low}, "x2": {"field": high}}
    layers = _limit_lines(limits, upright=True)
    layers.append(_layer("rule", place | span, f"isValid(datum.{low}) && isValid(datum.{high})", strokeWidth=2))
    layers.append(_layer("point", place | {"x": across, "shape": shape}, f"isValid(datum.{x})", size=70, opacity=1, filled=True))
    rows = len(set(data[y])) * max(1, len(colour["scale"]["domain"]))
    return Chart(_spec(layers, max(ROW * 2, ROW * rows)), data, columns, label, name)


def _spec(layers: Sequence[Spec], height: int, cursor: bool = False) -> Spec:
    """The whole specification: as wide as the page has room for."""
    params = {"params": [{"name": name, "value": None} for name in ("cursor_x", "cursor_y")]} if cursor else {}
    return {"data": {"name": TABLE}, "layer": list(layers), "width": "container", "height": height, **params}


def _layer(mark: str, encoding: Spec, *filters: str, **look: object) -> Spec:
    """Marks of one kind, of the rows that pass all filters."""
    return {"mark": {"type": mark, **look}, "encoding": encoding, "transform": [{"filter": rule} for rule in filters]}


def _field(column: str, type: str, columns: Mapping[str, str], **more: object) -> Spec:
    """What a channel shows: a column, how it is measured, and its heading."""
    return {"field": column, "type": type, "title": columns[column], **more}


def _gradient(scheme: str, domain: tuple[float, float] | None, legend: bool) -> Spec:
    """Scale and legend of colours that stand for values."""
    shown = {"orient": "top", "direction": "horizontal", "gradientLength": 160, "gradientThickness": 10} if legend else None
    mixed = {"interpolate": "rgb"} if scheme == SIGNED else {}  # other ways of mixing add hues of their own around 0
    return {"scale": {"range": scheme} | mixed | _limits(domain), "legend": shown}


def _crossed_out(encoding: Spec, missing: str, corner: float) -> list[Spec]:
    """Cells without a value."""
    grey = _layer("rect", encoding, missing, cornerRadius=corner, color="$line", opacity=0.6)
    return [grey, _layer("text", encoding, missing, text="×", color="$soft", fontSize=9)]


def _edges(x: str, groups: int, axis: Spec | None) -> Spec:
    """A line in front of every `groups`-th column but the first."""
    edge = {"field": x, "type": "ordinal", "bandPosition": 0, "axis": axis, "scale": CELLS}
    made = _layer("rule", {"x": edge}, f"datum.{x} > 0 && datum.{x} % {groups} == 0", color="$grey", opacity=0.7)
    made["transform"].append({"aggregate": [{"op": "count", "as": "count"}], "groupby": [x]})  # one line, not one per row
    return made


def _pointer(clickable: bool) -> str:
    return "pointer" if clickable else "default"


def _written(value: str, format: str, domain: tuple[float, float] | None) -> Spec:
    """Numbers in cells, dark on the light half of the scale."""
    low, high = domain or (0.0, 1.0)
    light = {"test": f"datum.{value} > {(low + high) / 2}", "value": "$over"}
    return {"text": {"field": value, "type": "quantitative", "format": format}, "color": {"condition": light, "value": "$under"}}


def _at_cursor(x: str, y: str) -> str:
    return f"datum.{x} === cursor_x && datum.{y} === cursor_y"


def _distinct(data: Table | str, column: str, label: str) -> int:
    if isinstance(data, str):
        raise HeadwiseError(f"give a height for {label!r}: how many rows the page's data have is not known here")
    return len(set(data[column]))


def _tooltip(columns: Mapping[str, str]) -> list[Spec]:
    for name in columns:
        if not re.fullmatch(r"\w+", name):
            raise HeadwiseError(f"a column of a chart has a plain name; got {name!r}")
    return [_field(name, "nominal", columns) for name in columns]


def _limits(domain: tuple[float, float] | None) -> Spec:
    return {} if domain is None else {"domain": list(domain)}


def _scale(domain: tuple[float, float] | None, log: bool = False) -> Spec:
    return ({"type": "log", "nice": False} if log else {"nice": domain is None}) | _limits(domain)


def _series(data: Table | str, series: str, columns: Mapping[str, str], colours: Mapping[str, str] | None = None) -> Spec:
    """Colours in the order in which the series occur in the data."""
    if isinstance(data, str):
        raise HeadwiseError("a chart with series needs its own data, so that their order is known")
    names = list(dict.fromkeys(data[series]))
    shown = [(colours or {}).get(name, SERIES[i % len(SERIES)]) for i, name in enumerate(names)]
    legend = {"orient": "top", "title": None, "columns": 2 if len(names) > 3 or sum(map(len, names)) > NARROW else len(names), "labelLimit": 260}
    scale = {"domain": names, "range": shown}
    return _field(series, "nominal", columns, scale=scale, legend=legend, sort=None)


def _shapes(colour: Spec) -> Spec:
    """Other shapes of points for series beyond the palette, whose colours come again; the legend shows both."""
    names = colour["scale"]["domain"] if "scale" in colour else []
    if len(names) <= len(SERIES):
        return {}
    return {
        "shape": colour
        | {"scale": {"domain": names, "range": [SHAPES[i // len(SERIES) % len(SHAPES)] for i in range(len(names))]}}
    }


def _limit_lines(limits: Sequence[float], upright: bool = False) -> list[Spec]:
    """Dashed lines across the chart at these values of y (of x: upright), each with its value."""
    if not limits:
        return []
    rows, place = {"data": {"values": [{"limit": limit} for limit in limits]}}, {"field": "limit", "type": "quantitative"}
    across, along = ("x", "y") if upright else ("y", "x")
    end = {"value": 0} if upright else {"value": "width"}
    words = {across: place, "text": place, along: end}
    away = {"align": "left", "dx": 4, "dy": 6} if upright else {"align": "right", "dx": -2, "dy": -6}
    return [
        _layer("rule", {across: place}, color="$grey", strokeDash=DASHED) | rows,
        _layer("text", words, color="$soft", **away) | rows,
    ]


def _diagonal(data: Table | str, x: str, y: str) -> Spec:
    """The line x = y over the range that both columns have."""
    known = [] if isinstance(data, str) else [v for name in (x, y) for v in data[name] if v is not None and v == v]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    ends = {"x": {"field": x, "type": "quantitative"}, "y": {"field": y, "type": "quantitative"}}
    return _layer("line", ends, color="$grey", strokeDash=DASHED) | {"data": {"values": [{x: low, y: low}, {x: high, y: high}]}}
