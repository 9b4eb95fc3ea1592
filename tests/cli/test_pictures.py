"""Without the extra `report` every command works and leaves its picture out, with one line; pictures that were asked for are refused."""

import json
import sys

import numpy as np
import pytest

from headwise.heads import HeadScores, save_heads

HINT = "headwise: no picture is drawn: matplotlib is not installed; install it with: pip install 'headwise[report]'\n"


@pytest.fixture
def bare(monkeypatch):
    """As if matplotlib were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def commands(planted, heads):
    grid = [*planted.own, "--lengths", "90", "--depths", "1"]
    return {
        "detect": ["detect", planted.model, *grid],
        "needle": ["needle", planted.model, *grid],
        "ablate": ["ablate", planted.model, *grid, "--heads", heads, "--top", "1", "--controls", "1"],
        "bench": [
            "bench", "cache", planted.model, "--lengths", 128, "--items", 1, "--tasks", "world.needle", "--question", "outside",
            "--methods", "random", "--budgets", "40",
        ],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["detect", "needle", "ablate", "bench"])
def test_results_are_written_without_their_picture(planted, heads, headwise, bare, tmp_path, command):
    given = commands(planted, heads)[command]
    done = headwise(*given, "-o", "r.json")
    assert done.code == 0, done.err
    assert done.err.endswith(HINT)
    assert done.err.count(HINT) == 1
    assert "r.json" in done.out
    assert ".png" not in done.out
    assert not list(tmp_path.glob("r*.png"))
    told = json.loads(headwise(*given, "-o", "r.json", "--overwrite", "--json").out)
    assert told["heat_map" if command == "detect" else "picture"] is None


def test_show_prints_and_says_once_what_is_missing(heads, headwise, bare, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = headwise("show", heads, heads)
    assert (done.code, done.err) == (0, HINT)
    assert "L1H2" in done.out
    assert "█" in done.out
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads(headwise("show", heads, "--json").out)["pictures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("asked", [["-o", "pictures"], ["--format", "svg"], ["--format", "png"]])
def test_pictures_that_were_asked_for_are_refused(heads, headwise, bare, asked):
    done = headwise("show", heads, *asked)
    wanted = "headwise: error: matplotlib is not installed; install it with: pip install 'headwise[report]'\n"
    assert (done.code, done.out, done.err) == (2, "", wanted)


def test_pages_need_no_extra(heads, headwise, bare, tmp_path):
    done = headwise("show", heads, "--html", "page.html")
    assert (done.code, done.err) == (0, "")
    assert "vegaEmbed" in (tmp_path / "page.html").read_text()


def test_errors_of_show_name_the_file(headwise, tmp_path):
    save_heads(HeadScores(np.linspace(0, 1, 2000)[None], "copy"), tmp_path / "wide.json")
    for more in ([], ["--html", "page.html"]):
        done = headwise("show", "wide.json", *more)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            "headwise: error: wide.json: a table of 1 layers × 2000 heads is larger than that of any model; at most 1024 × 1024 are shown\n"
        )
    assert not list(tmp_path.glob("wide*.png"))


def test_a_page_is_no_picture(heads, headwise):
    for more in (["-o", "x"], ["--format", "svg"]):
        done = headwise("show", heads, "--html", "page.html", *more)
        assert done.code == 2
        assert "--output and --format are for pictures and --html is for a page" in done.err
