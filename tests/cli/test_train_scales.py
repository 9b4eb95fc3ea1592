"""`headwise train scales` on a small lab model."""

import json

import numpy as np
import pytest
import torch

import headwise as hw
from tests.cli.test_refusals import check_refused
from tests.cli.test_train_heads import check_same_weights, files, in_two_processes  # noqa: F401  (files is a fixture)

STEPS = ["--steps", "2", "--accumulate", "1", "--save-every", "1", "--length", "256"]


@pytest.fixture
def command(files):  # noqa: F811
    return ["train", "scales", "lab-6m", "--data", str(files / "data.jsonl"), *STEPS, "-o", "out"]


@pytest.mark.slow
def test_scales_and_a_checkpoint_are_written(headwise, command, tmp_path):
    done = headwise(*command, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [row["step"] for row in told["curve"]] == [1, 2]
    assert told["counts"]["no_gold"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the run is gone
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["merged", "scales.json", "training.json"]
    scores = hw.load_heads(tmp_path / "out" / "scales.json")
    assert (scores.score, scores.shape, scores.provenance["model"]) == ("scale", (8, 8), "lab-6m")
    assert 0 < np.abs(scores.values - 1).max() < 0.05
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    merged, base = (hw.load(name) for name in (str(tmp_path / "out" / "merged"), "lab-6m"))
    with torch.no_grad():
        assert not torch.equal(merged.hf(ids).logits, base.hf(ids).logits)
    shown = headwise("show", "out/scales.json", "--json")
    assert shown.code == 0, shown.err


@pytest.mark.slow
def test_only_heads_of_the_head_file_learn(headwise, command, files, tmp_path):  # noqa: F811
    heads = files / "heads.json"
    done = headwise(*command, "--heads", heads, "--top", 3)
    assert done.code == 0, done.err
    assert "headwise show out/scales.json" in done.out
    changed = np.argwhere(hw.load_heads(tmp_path / "out" / "scales.json").values != 1).tolist()
    assert sorted(changed) == sorted(map(list, hw.load_heads(heads).top(3)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--top", "3"], "--heads"),
        (["--rate", "2"], "rate must lie"),
        (["--steps", "0"], "steps must be"),
        (["--length", "4096"], "positions of lab-6m"),
        (["--length", "16"], "are too long"),
        (["--data", "nothing.jsonl"], "cannot read queries"),
        (["--heads", "nothing.json"], "no such head file"),
    ],
)
def test_bad_input_is_refused_in_one_line(headwise, command, tmp_path, more, message):
    check_refused(headwise(*command, *more), message)
    assert not any(tmp_path.iterdir())


def test_folders_are_not_replaced(headwise, command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    check_refused(headwise(*command), "not an empty folder")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(headwise, command, tmp_path):
    told = [*command[:-2], "--device", "cpu"]
    done = headwise(*told, "-o", tmp_path / "one", "--accumulate", 2)
    assert done.code == 0, done.err
    in_two_processes(*told, "-o", tmp_path / "two")
    check_same_weights(*(tmp_path / name / "merged" / "model.safetensors" for name in ("one", "two")))
