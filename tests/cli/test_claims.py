"""`headwise claims`: list, run, show, export."""

import json

import pytest

from headwise.claims.claim import Claim, Finding
from headwise.claims.experiment import Experiment, Measured, Minutes
from tests.claims import made_up
from tests.cli.test_refusals import check_refused


@pytest.fixture
def small(monkeypatch):
    made_up.install(monkeypatch)


@pytest.fixture
def measured(small, headwise, tmp_path):
    done = headwise("claims", "run", "--model", "lab-6m", "-o", tmp_path / "found", "--json")
    assert done.code == 0, done.err
    return tmp_path / "found"


def test_a_run_tells_what_it_found(small, headwise, tmp_path):
    done = headwise("claims", "run", "--model", "lab-6m", "--card", "qrhead", "-o", tmp_path / "found")
    assert done.code == 0, done.err
    assert "1 experiment, about 60 seconds" in done.err
    assert "✓" in done.out
    assert "above" in done.out
    again = headwise("claims", "run", "--model", "lab-6m", "--card", "qrhead", "-o", tmp_path / "found", "--json")
    assert json.loads(again.out)["written"] == []
    assert "done already" in again.err


@pytest.mark.slow
def test_a_run_corrects_over_the_whole_family_as_show_does(small, headwise, tmp_path, monkeypatch):
    first = Claim("made.other", "qrhead", "2", "it differs", "difference", rule=("difference > 0",), tested=True)
    one = Experiment("before", "Before", (first,), "tests.claims.made_up:measured_before", Minutes(0.1, 0.1))
    monkeypatch.setattr("headwise.claims.ledger.experiments", lambda: (*made_up.EXPERIMENTS, one))
    monkeypatch.setattr(
        made_up, "measured_before", lambda bench: Measured({"made.other": Finding({"difference": 1.0}, p=0.03)}), raising=False
    )  # fmt: skip
    for name in ("made", "before"):
        done = headwise("claims", "run", "--model", "lab-6m", "--experiment", name, "-o", tmp_path / "found", "--json")
        assert done.code == 0, done.err
    (row,) = json.loads(done.out)["claims"]
    assert (row["claim"], row["p_corrected"], row["verdict"]) == ("made.other", 0.06, "not held")
    shown = json.loads(headwise("claims", "show", tmp_path / "found", "--claim", "made.other", "--json").out)["claims"]
    assert shown == [row]


def test_a_plan_runs_nothing(small, headwise, tmp_path):
    done = headwise("claims", "run", "--model", "smollm2", "--model", "lab-6m", "--plan", "--json")
    told = json.loads(done.out)
    assert [(row["model"], row["experiment"]) for row in told["steps"]] == [
        ("smollm2", "heads"), ("smollm2", "made"), ("lab-6m", "heads"), ("lab-6m", "made"),
    ]  # fmt: skip
    assert told["minutes"] == pytest.approx(0.2 + 10 + 0.1 + 1)
    assert told["without_data"] == {"gpu": "big-set"}
    assert list(tmp_path.iterdir()) == []


def test_reasons_and_what_is_missed_are_told(small, headwise, tmp_path, monkeypatch):
    monkeypatch.setattr(made_up, "measured_heads", lambda bench: Measured({"other.heads": Finding({"heads": -1.0})}))
    monkeypatch.setattr(made_up, "measured_above", made_up.measured_nothing)
    assert headwise("claims", "run", "--model", "lab-6m", "-o", tmp_path / "found", "--json").code == 0
    shown = headwise("claims", "show", tmp_path / "found").out
    assert "not testable: needs a GPU (made.above and 2 more)" in shown
    assert "1 ✗ not held, 3 – not testable" in shown  # the claim that is not for lab models is not missed
    assert "missed     heads > 0" in headwise("claims", "show", tmp_path / "found", "--claim", "other.heads").out


def test_small_versions_are_not_counted_as_held(small, headwise, tmp_path):
    assert headwise("claims", "run", "--model", "lab-6m", "--experiment", "heads", "--quick", "-o", tmp_path / "found", "--json").code == 0
    shown = headwise("claims", "show", tmp_path / "found", "--html", tmp_path / "page.html").out
    assert "✓ quick" in shown
    assert "1 measured in small versions (quick)" in shown
    assert "✓ held" not in shown
    assert "0 held, 0 not held, 0 not testable, 1 quick" in (tmp_path / "page.html").read_text()


def test_the_results_that_come_with_headwise_stand_beside_others(measured, headwise, tmp_path, monkeypatch):
    monkeypatch.setattr("headwise.claims.results.shipped", lambda: measured)
    told = json.loads(headwise("claims", "show", "shipped", "--json").out)
    assert told["models"] == ["lab-6m"]
    assert json.loads(headwise("claims", "show", "--json").out) == told


@pytest.mark.slow
def test_show_list_and_export(measured, headwise, tmp_path):
    shown = headwise("claims", "show", measured, "--html", tmp_path / "page.html")
    assert shown.code == 0, shown.err
    assert "3 ✓ held, 1 ✗ not held" in shown.out
    assert "not measured" not in shown.out  # the fifth is not for lab models
    assert "what is chosen is above chance" in (tmp_path / "page.html").read_text()
    one = headwise("claims", "show", measured, "--claim", "made.above")
    assert "share 0.7 (0.6 to 0.8)" in one.out
    listed = headwise("claims", "list", measured, "--verdict", "held", "--json")
    assert [row["claim"] for row in json.loads(listed.out)["claims"]] == ["made.above", "made.below", "other.heads"]
    listed = headwise("claims", "list", measured, "--cost", "minutes", "--json")
    assert [row["claim"] for row in json.loads(listed.out)["claims"]] == ["made.above", "made.tested", "made.below"]
    for end in ("json", "csv"):
        done = headwise("claims", "export", measured, "-o", tmp_path / f"table.{end}")
        assert done.code == 0, done.err
        assert "made.tested" in (tmp_path / f"table.{end}").read_text()
    check_refused(headwise("claims", "export", measured, "-o", tmp_path / "table.csv"), "exists")


def test_claims_are_listed_before_anything_is_measured(small, headwise, monkeypatch, tmp_path):
    monkeypatch.setattr("headwise.claims.results.shipped_results", list)
    listed = headwise("claims", "list", "--card", "cafe")
    assert "the model has heads" in listed.out
    assert "2 claims of 5" in listed.out
    assert "not measured" in headwise("claims", "show", "--claim", "made.above").out
    assert "5 not measured; headwise claims run --plan" in headwise("claims", "show", "--html", tmp_path / "page.html").out
    assert "the model has heads" in (tmp_path / "page.html").read_text()
    assert len(json.loads(headwise("claims", "list", "--verdict", "unmeasured", "--json").out)["claims"]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--card", "nothing"], "unknown card 'nothing'; use retrieval-head"),
        (["run", "--claim", "made.abov"], "unknown claim 'made.abov'; use made.above"),
        (["run", "--experiment", "mode"], "unknown experiment 'mode'; use made"),
        (["run", "--model", "lab-6m", "--model", "lab-6m"], "told apart by their names"),
        (["run", "--model", "lab-6m", "--experiment", "gpu"], "nothing to run"),
        (["run", "--data", "nowhere"], "there is no folder nowhere"),
        (["run", "--model", "no-such-model", "--experiment", "heads"], "no-such-model"),
        (["run", "--model", "lab-6m", "--model", ".", "--experiment", "heads"], "'.' is no model: "),
        (["run", "--model", "lab-6m", "--model", __file__, "--experiment", "heads"], "is a text file, not a model"),
        (["run", "--model", "lab-6m", "--experiment", "heads", "-o", f"{__file__}/found"], "is not a folder that can be written to"),
        (["run", "--model", "lab-6m", "--hours", "0"], "--hours must be above 0; got 0"),
        (["run", "--model", "lab-6m", "--hours", "nan"], "--hours must be above 0; got nan"),
        (["run", "--model", "lab-6m", "--jobs", "0"], "--jobs"),
        (["show", "nowhere"], "there is no folder nowhere"),
        (["list", "--verdict", "true"], "unknown verdict 'true'"),
        (["list", "--cost", "cheap"], "unknown cost 'cheap'"),
        (["export", "-o", "table.txt"], "must end in .json or .csv"),
    ],
)
def test_bad_input_is_refused_in_one_line(small, headwise, monkeypatch, words, message):
    check_refused(headwise("claims", *words), message)


def test_another_model_than_the_results_hold_is_refused(measured, headwise):
    check_refused(headwise("claims", "show", measured, "--model", "smollm2"), "there are results of lab-6m")


@pytest.mark.slow
def test_the_matrix_of_a_model_is_drawn_and_stands_on_the_page(headwise, tmp_path):
    made_up.write_transfer(tmp_path / "found", "some", quick=True)
    done = headwise("claims", "show", tmp_path / "found", "--picture", tmp_path / "same.svg", "--html", tmp_path / "page.html", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["picture"] == str(tmp_path / "same.svg")
    assert "some (quick)" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "same.svg").read_text().startswith("<?xml")
    made_up.write_transfer(tmp_path / "found", "other")
    done = headwise("claims", "show", tmp_path / "found", "--model", "other", "--picture", tmp_path / "other.png")
    assert done.code == 0, done.err
    assert f"picture    {tmp_path / 'other.png'}" in done.out
    check_refused(headwise("claims", "show", tmp_path / "found", "--picture", "a.png"), "other, some (quick)", "--model")


@pytest.mark.slow
def test_other_claims_have_a_page_without_the_matrix(headwise, tmp_path):
    made_up.write_transfer(tmp_path / "found", "some")
    done = headwise("claims", "show", tmp_path / "found", "--card", "qrhead", "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "Which heads are the same?" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"details": {}}, "a.png", "holds the matrix of detectors and tasks that --picture draws"),
        ({"ledger": "0"}, "a.svg", "no result of this version of the ledger holds the matrix"),
        ({"details": {"heads": {"copy": []}}}, "a.png", "the result of the experiment transfer of some holds no matrix"),
        ({}, "a.jpg", "end its name with .png or .svg"),
        ({}, "nowhere.txt/a.png", "is not a folder"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_drawn_is_refused(headwise, tmp_path, changes, name, message):
    made_up.write_transfer(tmp_path / "found", "some", **changes)
    (tmp_path / "nowhere.txt").write_text("")
    check_refused(headwise("claims", "show", tmp_path / "found", "--picture", tmp_path / name), message)
    assert not list(tmp_path.glob("a.*"))
