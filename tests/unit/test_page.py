"""The shared parts of pages: what users and prompts bring is text and never markup; charts are whole Vega-Lite specifications."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headwise.heads import HeadwiseError
from headwise.report.page import charts, parts, shell

EVIL = "</script><script>alert('x')</script>"
COLUMNS = {"x": "Across", "y": "Up", "v": "Value", "s": "Series"}
DATA = {"x": [0, 1, 0, 1], "y": [0, 0, 1, 1], "v": [0.1, None, 0.5, 1.0], "s": ["a", "a", "b", "b"]}


def some_charts():
    look = {"label": "what it shows", "name": "chart"}
    return [
        charts.heat_map(DATA, COLUMNS, x="x", y="y", value="v", groups=2, cursor=True, numbers=".2f", **look),
        charts.heat_map(DATA, COLUMNS, x="x", y="y", value="v", axes=False, legend=False, **look),
        charts.heat_map(DATA, COLUMNS, x="x", y="y", value="v", domain=(-1, 1), scheme=charts.SIGNED, marked="s", **look),
        charts.ranges(DATA, COLUMNS, x="v", low="x", high="y", y="x", series="s", x_domain=(0, 1), limits=(0.15,), **look),
        charts.scatter(DATA, COLUMNS, x="x", y="v", series="s", limits=(0.5,), diagonal=True, cursor=("x", "y"), **look),
        charts.lines(DATA, COLUMNS, x="x", y="v", low="x", high="y", series="s", colours={"b": "$grey"}, x_values=[0, 1], **look),
    ]


def test_text_is_escaped_wherever_it_enters():
    body = shell.join(
        parts.header(EVIL, EVIL, facts={EVIL: EVIL}),
        parts.section(EVIL, parts.note(EVIL), parts.details(EVIL, EVIL), lead=EVIL, aside=EVIL),
        parts.table([EVIL, EVIL], [[EVIL, EVIL]], caption=EVIL),
        parts.marked_text([(EVIL, 0.5, "needle"), (EVIL, None, None)], label=EVIL),
        parts.text_key(weights=EVIL, marks={"answer": EVIL}),
        parts.figure(charts.lines({"s": [EVIL], "v": [1]}, {"s": EVIL, "v": EVIL}, x="s", y="v", label=EVIL, name="x")),
    )
    page = shell.document(EVIL, body, data={EVIL: [EVIL]})
    assert "<script>alert" not in page
    assert page.count("</script") == page.count("<script") == 4  # the figure's data, the page's data, vega, page.js
    assert "&lt;script&gt;alert" in page


def test_data_survive_the_page():
    data = {"text": EVIL + "  <!-- é", "numbers": np.array([1.5, np.nan]), "inside": (np.int64(3), float("inf"))}
    tag = shell.data_tag(data)
    assert "<!--" not in tag
    read = json.loads(re.fullmatch(r"<script[^>]*>(.*)</script>", tag, re.DOTALL)[1])
    assert read == {"text": data["text"], "numbers": [1.5, None], "inside": [3, None]}


def test_scripts_are_there_only_if_needed():
    plain = shell.document("t", parts.section("A", "b"))
    assert "<script" not in plain
    assert shell.document("t", shell.Html(), data={}).count("<script") == 2
    assert "vegaEmbed" not in shell.document("t", shell.Html(), data={}).replace("await vegaEmbed", "")
    assert "vegaEmbed=" in shell.document("t", parts.figure(some_charts()[0]))


def test_nothing_is_fetched():
    page = shell.document("t", parts.figure(some_charts()[0]))
    page = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert not re.findall(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=", page)
    assert "@import" not in shell.resource("page.css")
    assert "url(" not in shell.resource("page.css")


def test_a_tag_has_the_attributes_that_are_given():
    tag = shell.tag("a", "x", class_="c", data_name='"', href=None, hidden=True, open=False, name="n")
    assert tag == '<a class="c" data-name="&quot;" hidden name="n">x</a>'


MARKS = {"rect", "text", "rule", "line", "area", "circle", "point"}
PARTS = {"mark", "encoding", "transform", "data"}
CHANNELS = {"x", "x2", "y", "y2", "yOffset", "color", "shape", "text", "tooltip"}
TYPES = {"quantitative", "ordinal", "nominal"}


def channels(layer):
    for name, channel in layer["encoding"].items():
        yield from ((name, one) for one in (channel if isinstance(channel, list) else [channel]))


@pytest.mark.parametrize("chart", some_charts(), ids=lambda chart: str(len(json.dumps(chart.spec))))
def test_charts_are_whole_and_read_only_what_the_table_has(chart):
    """The shape only: in tests/browser Vega-Lite itself draws the same charts."""
    spec = json.loads(json.dumps(chart.spec))
    assert spec.keys() - {"params"} == {"data", "layer", "width", "height"}
    assert (spec["data"], spec["width"]) == ({"name": charts.TABLE}, "container")
    params = {param["name"] for param in spec.get("params", ())}
    for layer in spec["layer"]:
        assert layer.keys() <= PARTS
        assert layer["mark"]["type"] in MARKS
        assert layer["encoding"].keys() <= CHANNELS
        known = set(DATA) if "data" not in layer else set(layer["data"]["values"][0])
        for name, channel in channels(layer):
            assert ("field" in channel) != ("value" in channel), name
            assert channel.get("field") is None or channel["field"] in known
            assert name in ("x2", "y2") or channel.get("type", "nominal") in TYPES
        for step in layer["transform"]:
            assert set(re.findall(r"datum\.(\w+)", step.get("filter", ""))) <= known
            assert set(re.findall(r"\bcursor_\w+", step.get("filter", ""))) <= params
            assert set(step.get("groupby", ())) <= known


def test_colours_of_series_follow_the_data_and_the_given_ones():
    colour = some_charts()[-1].spec["layer"][-1]["encoding"]["color"]
    assert colour["scale"] == {"domain": ["a", "b"], "range": ["$red", "$grey"]}
    assert colour["sort"] is None
    many = {"x": list(range(9)), "s": [f"s{i}" for i in range(9)]}
    drawn = charts.lines(many, {"x": "x", "s": "s"}, x="x", y="x", series="s", label="l", name="n").spec["layer"][0]["encoding"][
        "color"
    ]
    assert drawn["scale"]["range"] == [*charts.SERIES, *charts.SERIES[:2]]


def test_vendored_scripts_are_the_recorded_releases():
    folder = Path(shell.__file__).with_name("vendor")
    rows = re.findall(
        r"^\| (\S+\.js) \| (\S+) ([\d.]+) \| ([0-9a-f]{64}) \|$", (folder / "SOURCE.md").read_text("utf-8"), re.MULTILINE
    )
    assert (
        {file for file, *_ in rows}
        == {path.name for path in folder.glob("*.js")}
        == {f"vega{part}.min.js" for part in ("", "-lite", "-embed")}
    )
    licences = (folder / "LICENSES.txt").read_text("utf-8")
    for file, package, version, digest in rows:
        script = (folder / file).read_bytes()
        assert hashlib.sha256(script).hexdigest() == digest, f"{file} is not the file of {package} {version}; see SOURCE.md"
        assert f"{package} {version}" in licences
        assert f'"{version}"' in script.decode()
    assert "sourceMappingURL" not in shell.document("t", parts.figure(some_charts()[0]))


def test_pages_need_no_package_beside_the_core():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('altair', 'matplotlib', 'vl_convert')))\n"
        "from headwise.report.page import charts, parts, shell\n"
        "chart = charts.lines({'x': [1]}, {'x': 'X'}, x='x', y='x', label='l', name='n')\n"
        "assert 'vegaEmbed' in shell.document('t', parts.figure(chart))\n"
        "import headwise.report.explorer, headwise.report.compression_page, headwise.report.influence, headwise.report.ranking_page"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_drawn_is_refused():
    look = {"label": "l", "name": "n"}
    with pytest.raises(HeadwiseError, match="give a height for 'l'"):
        charts.heat_map("held", COLUMNS, x="x", y="y", value="v", **look)
    with pytest.raises(HeadwiseError, match="a chart with series needs its own data"):
        charts.scatter("held", COLUMNS, x="x", y="y", series="s", **look)
    with pytest.raises(HeadwiseError, match=r"a column of a chart has a plain name; got 'a\.b'"):
        charts.lines({"a.b": [1]}, {"a.b": "x"}, x="a.b", y="a.b", **look)
    with pytest.raises(HeadwiseError, match="unknown mark 'x' in a text; use needle, answer, dropped"):
        parts.marked_text([("a", 1.0, "x")])


def test_weights_are_shares_of_the_heaviest_piece():
    made = parts.marked_text([("light", 1.0, None), ("heavy", 4.0, None), ("none", 0.0, None), (" after", None, None)])
    assert '<span class="w" style="--w:0.25" title="1">light</span>' in made
    assert "--w:1.00" in made
    assert made.endswith("</span>none after</p>")
    assert 'style="--w:0.50"' in parts.marked_text([("a", 1.0, None)], scale=2.0)


def test_every_colour_has_a_light_and_a_dark_form():
    page = shell.document("t", shell.Html())
    for name, (light, dark) in shell.THEME.items():
        assert f"--{name}:{light}" in page
        assert page.count(f"--{name}:{dark}") >= 2  # by the system's wish and by the button
    assert set(charts.SERIES) <= {f"${name}" for name in shell.THEME}


def test_a_page_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / "page.html"
    shell.write_document(path, "one")
    assert shell.write_document(path, "two").read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_series_beyond_the_palette_have_points_of_their_own_shape():
    names = [f"chooser {i}" for i in range(9)]
    data, headings = {"x": [1.0] * 9, "y": [0.5] * 9, "who": names}, {"x": "X", "y": "Y", "who": "Who"}
    made = charts.lines(data, headings, x="x", y="y", series="who", label="a chart", name="n")
    points = made.spec["layer"][-1]["encoding"]
    looks = list(zip(points["color"]["scale"]["range"], points["shape"]["scale"]["range"], strict=True))
    assert len(set(looks)) == 9
    assert points["shape"]["legend"] == points["color"]["legend"]  # one legend shows both
