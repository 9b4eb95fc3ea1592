"""`headwise lab eval` on real input, and wrong input."""

import json

import pytest

from headwise.heads import HeadwiseError
from headwise.models.names import bundled_model
from headwise_lab.eval_tasks import GOALS
from tests.cli.test_refusals import check_refused


@pytest.mark.slow
def test_json_table_and_file(headwise, tmp_path):
    done = headwise("lab", "eval", "lab-6m", "--items", "1", "--json", "-o", "given/result.json")
    assert done.code == 0, done.err
    assert done.err == ""
    data = json.loads(done.out)
    assert json.loads((tmp_path / "given" / "result.json").read_text()) == data
    (model,) = data["models"]
    assert (model["model"], model["items"], model["split"], model["seed"]) == ("lab-6m", 1, "test", 0)
    rows = {row["task"]: row for row in model["rows"]}
    assert set(GOALS) <= set(rows)
    assert all(row["n"] == 1 for row in rows.values())
    again = headwise("lab", "eval", "lab-6m", "--items", "1", "--json", "-o", "given/result.json")
    check_refused(again, "exists", "--overwrite")


@pytest.mark.slow
def test_the_table_has_a_column_per_model(planted, headwise):
    done = headwise("lab", "eval", "lab-6m", planted.model, "lab-6m", "--items", "1", "--split", "selection")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["task", "goal", "lab-6m", "model"]
    needle = next(line for line in lines if line.startswith("needle "))
    assert needle.split()[1:3] == [">=", "95"]
    assert "✗" in needle or "✓" in needle
    assert any(line.startswith("bits_per_character") for line in lines)


@pytest.mark.slow
def test_without_a_name_all_bundled_models_are_measured(headwise, monkeypatch):
    asked = []

    def stop(loaded, *options):
        asked.append((loaded.name, *options[:3]))
        raise HeadwiseError("enough")

    monkeypatch.setattr("headwise_lab.evaluation.evaluate_model", stop)
    check_refused(headwise("lab", "eval"), "enough")
    from headwise_lab.cli import _bundled

    assert asked == [(_bundled()[0], 100, "test", 0)]
    assert "lab-6m" in _bundled()
    assert all((bundled_model(name) / "config.json").is_file() for name in _bundled())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["/no/such/model"], ["no such model folder", "/no/such/model"]),
        (["lab-7m"], ["unknown model 'lab-7m'", "did you mean lab-6m"]),
        (["lab-6m", "./nowhere"], ["no such model folder", "./nowhere"]),
        (["lab-6m", "--items", "0"], ["items must be at least 1", "0"]),
        (["lab-6m", "--seed", "-1"], ["seed must be 0 or more"]),
        (["lab-6m", "--split", "exam"], ["unknown split", "'exam'", "test"]),
        (["lab-6m", "-o", "."], ["is a folder", "--output"]),
        (["lab-6m", "-o", "file/result.json"], ["cannot write", "file", "--output"]),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_refused(headwise, tmp_path, arguments, parts):
    (tmp_path / "file").write_text("a file, no folder")
    check_refused(headwise("lab", "eval", *arguments), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
