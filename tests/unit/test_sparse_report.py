"""Sparse decoding on a page and in the console: bytes of choosing counted in, intervals, recall by layer. Made-up rows, no model."""

import json
import re

import pytest
from rich.console import Console

from headwise.report.sparse import sparse_tables, with_short_names, write_page

BASE = {"length": 512, "n": 3, "gate": "passed", "bytes_moved": 1e5, "bytes_full": 9e6}


def row(task, chooser, budget, read, chosen_by, **more):
    return BASE | {"task": task, "chooser": chooser, "budget": budget, "bytes_read": read, "bytes_chosen_by": chosen_by} | more


def text(chooser, budget, read, chosen_by, recall):
    shares = {
        "perplexity_ratio": 1.01,
        "agreement": 0.9,
        "mass": 0.8,
        "mass_heads": 0.7,
        "overlap": 0.6,
        "overlap_by_chance": 0.1,
    }
    ends = {f"{name}_interval": [0.5, 0.95] for name in ("perplexity_ratio", "agreement", "mass", "mass_heads", "recall")}
    found = {"recall": 0.4, "recall_by_chance": 0.07, "recall_by_layer": recall}
    return row("text", chooser, budget, read, chosen_by, **shares, **ends, **found)


def made_up(evil="<b>pages</b>"):
    """A result with three tasks, one of them not testable."""
    greedy = {
        "agreement_greedy": 0.25,
        "equal_greedy": 0.5,
        "agreement_greedy_interval": None,
        "equal_greedy_interval": [0.4, 0.6],
    }
    rows = [
        row("needle", "full", None, 9e6, 0.0, gate="not testable", score=0.1, full_score=0.1, score_interval=[0.0, 0.2]),
        BASE | {"task": "needle", "chooser": evil, "budget": 64, "gate": "not testable"},
        text("full", None, 9e6, 0.0, None) | {"mass": None, "mass_heads": None, "recall": None, "recall_by_chance": None},
        text(evil, 64, 2e6, 1e6, [0.31, 0.42, None]),
        text("oracle", 64, 2e6, 4.5e6, [0.97, 0.98, 0.99]),
        row("greedy", "full", None, 9e6, 0.0, agreement_greedy=1.0, equal_greedy=1.0),
        row("greedy", evil, 64, 2e6, 1e6, **greedy),
    ]
    return {"model": "m", "contexts": 3, "seed": 0, "rows": rows}


def charts_of(page):
    """Name -> data of the charts of a page."""
    found = [json.loads(each) for each in re.findall(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.DOTALL)]
    return {one["name"]: one["data"] for one in found if "name" in one}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(made_up(), tmp_path_factory.mktemp("page") / "p.html").read_text("utf-8")


def test_the_axis_counts_what_choosing_reads(page):
    charts = charts_of(page)
    assert charts["agreement-text-512-tokens"]["read"] == [3.0, 6.5]
    assert charts["agreement_greedy-greedy-512-tokens"]["read"] == [3.0]
    assert not [name for name in charts if name.startswith("score")]  # the needle is not testable


def test_recall_has_a_chart_per_budget(page):
    data = charts_of(page)["recall-by-layer-text-512-tokens-budget-64"]
    assert data["layer"] == [0, 1, 2, 0, 1, 2]
    assert data["recall"] == [0.31, 0.42, None, 0.97, 0.98, 0.99]


def test_intervals_stand_in_small_beside_qualities(page):
    assert re.search(r"0\.90 <small[^>]*>0\.50–0\.95</small>", page)
    assert re.search(r"0\.50 <small[^>]*>0\.40–0\.60</small>", page)
    assert "<b>pages</b>" not in page


def test_a_row_of_an_older_run_is_not_drawn_at_a_wrong_place(tmp_path):
    result = made_up()
    for each in result["rows"]:
        each.pop("bytes_chosen_by", None)
    assert charts_of(write_page(result, tmp_path / "p.html").read_text("utf-8"))["mass-text-512-tokens"]["read"] == [None, None]


def test_the_console_has_intervals_where_they_fit(capsys):
    for table in sparse_tables(made_up()["rows"]):
        Console(width=80).print(table)
    said = capsys.readouterr().out
    assert "not testable on this model: full attention scores 0.10" in said
    [line] = [line for line in said.split("\n") if line.startswith("full ") and "MB" in line][:1]
    assert "0.00–0.20" in line
    lines = [" ".join(line.split()) for line in said.split("\n") if line.startswith("oracle")]
    assert lines == ["oracle 64 1.010 0.90 0.80 0.70 0.40 0.07 0.60 0.10", "oracle 64 0.500–0.950 2 MB 4.5 MB 100 kB"]


def test_a_file_is_named_without_its_folders_so_that_numbers_have_room(capsys):
    name = "distilled:file=/a/long/way/to/the/smollm2.chooser.safetensors,level=batch"
    rows = made_up(name)["rows"]
    for table in sparse_tables(rows):
        Console(width=80).print(table)
    said = capsys.readouterr().out
    assert "…" not in said
    assert "long/way" not in said
    assert "0.50–0.95" in said or "0.500–0.950" in said
    assert {row["chooser"] for row in with_short_names(rows)} == {
        "full",
        "oracle",
        "distilled:file=smollm2.chooser.safetensors,level=batch",
    }


def test_two_files_of_one_name_keep_their_folders():
    rows = [row("text", f"distilled:file={folder}/c.safetensors", 64, 1.0, 1.0) for folder in "ab"]
    assert [each["chooser"] for each in with_short_names(rows)] == [each["chooser"] for each in rows]
