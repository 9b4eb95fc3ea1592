"""`headwise bench decode`: a table, a page and a result, and bad input in one line each."""

import json

import pytest

from headwise.models.draft_head import DraftHead, shape_for
from headwise.models.load import load
from headwise.models.names import bundled_model
from tests.cli.test_refusals import check_refused

SMALL = ("--lengths", 300, "--contexts", 1, "--steps", 6, "--tasks", "key-value,text,greedy", "--budgets", 64)


@pytest.fixture(scope="module")
def lab():
    return str(bundled_model())


@pytest.mark.slow
def test_a_run_gives_rows_a_table_and_a_page(lab, headwise, tmp_path):
    done = headwise("bench", "decode", lab, *SMALL, "--choosers", "pages:size=8,oracle", "-o", "r.json", "--html", "p.html")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())
    rows = result["rows"]
    assert len(result["cells"]) == sum(row["gate"] == "passed" or row["chooser"] == "full" for row in rows)  # one context each
    assert all(cell["context"] == 0 and "bytes_chosen_by" in cell for cell in result["cells"])
    assert [(row["task"], row["chooser"], row["budget"]) for row in rows] == [
        ("key_value", "full", None), ("key_value", "pages:size=8", 64), ("key_value", "oracle", 64),
        ("text", "full", None), ("text", "pages:size=8", 64), ("text", "oracle", 64),
        ("greedy", "full", None), ("greedy", "pages:size=8", 64), ("greedy", "oracle", 64),
    ]  # fmt: skip
    assert all(("score" in row) == (row["gate"] == "passed" or row["chooser"] == "full") for row in rows[:3])
    assert rows[5]["mass"] > rows[4]["mass"] > 0
    assert len(rows[5]["recall_by_layer"]) > 1
    assert rows[8]["agreement_greedy"] <= rows[8]["equal_greedy"]
    assert "Sparse decoding" in (tmp_path / "p.html").read_text()
    assert "300 tokens" in done.out
    assert not (tmp_path / "r.json.run").exists()


@pytest.mark.slow
def test_results_of_two_trainings_are_not_mixed(lab, headwise, tmp_path, monkeypatch):
    """A run that was stopped does not go on when another chooser has come to stand under the same name."""

    def stop(loaded, rivals, drawn, chosen, directory, report, min_full):
        directory.save("cell", {}, [{}])
        raise KeyboardInterrupt

    monkeypatch.setattr("headwise.evaluation.sparse.measure_cells", stop)
    shape = shape_for(load(lab), "emb", 64)
    command = ("bench", "decode", lab, *SMALL, "--tasks", "text", "--choosers", "distilled:file=c.safetensors,dilate=1", "-o", "r.json")
    DraftHead(shape).save(tmp_path / "c.safetensors")
    assert [headwise(*command).code for _ in range(2)] == [130, 130]
    DraftHead(shape).save(tmp_path / "c.safetensors", overwrite=True)
    check_refused(headwise(*command), "other options")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (("--budgets", 20), "leaves nothing to choose"),
        (("--lengths", 100000), "positions"),
        (("--choosers", "page"), "unknown chooser"),
        (("--choosers", "pages:width=2"), "no option"),
        (("--choosers", "retrieval_heads"), "needs heads"),
        (("--choosers", "distilled:none.json"), "no option 'none.json'"),
        (("--choosers", "destilled"), "unknown chooser"),
        (("--tasks", "needles"), "needle"),
        (("--heads", "none.json"), "no such head file"),
        (("--steps", 400), "do not hold"),
    ],
)
def test_bad_input_is_one_line(lab, headwise, given, part):
    check_refused(headwise("bench", "decode", lab, *SMALL, "-o", "r.json", *given), part)
