"""`headwise train chooser`: a file that decodes, a training that goes on where it was stopped, and bad input in one line each."""

import json

import pytest

from headwise.models.draft_head import read_draft_head
from headwise.models.names import bundled_model
from tests.cli.test_refusals import check_refused

SMALL = ("--length", 96, "--batch", 1, "--steps", 4)


@pytest.fixture(scope="module")
def lab():
    return str(bundled_model())


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The key is red. The old lamp is in the mill. A bird saw the sun. " * 120)
    return folder


@pytest.mark.slow
def test_a_trained_chooser_decodes(lab, headwise, text, tmp_path):
    done = headwise("train", "chooser", lab, *SMALL, "--text", text, "-o", "c.safetensors")
    assert done.code == 0, done.err
    assert "c.safetensors" in done.out
    head = read_draft_head(tmp_path / "c.safetensors")
    assert head.story["options"]["steps"] == 4
    assert [row["step"] for row in head.story["curve"]] == [4]
    assert not (tmp_path / "c.safetensors.run").exists()
    done = headwise(
        "bench", "decode", lab, "--choosers", "distilled:file=c.safetensors,dilate=1", "--lengths", 300, "--contexts", 1, "--steps", 3, "--tasks",
        "text", "--budgets", 64, "-o", "r.json", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][1]["bytes_chosen_by"] > 0


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on(lab, headwise, text, tmp_path, monkeypatch):
    monkeypatch.setattr("headwise.methods.specontext.train.SAVED", 2)
    assert headwise("train", "chooser", lab, *SMALL, "--text", text, "-o", "whole.safetensors", "--json").code == 0
    from headwise.methods.specontext import train

    step, asked = train._step, []

    def stop(teacher, state):
        asked.append(state.steps)
        if state.steps == 3:
            raise KeyboardInterrupt
        return step(teacher, state)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_step", stop)
        stopped = headwise("train", "chooser", lab, *SMALL, "--text", text, "-o", "c.safetensors")
    assert stopped.code == 130
    assert "run the same command again" in stopped.err
    done = headwise("train", "chooser", lab, *SMALL, "--text", text, "-o", "c.safetensors", "--json")
    assert json.loads(done.out)["curve"][-1]["step"] == 4
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    other = ("--length", 96, "--batch", 1, "--steps", 6)
    assert asked == [0, 1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(train, "_step", stop)
        headwise("train", "chooser", lab, *SMALL, "--text", text, "-o", "d.safetensors")
    check_refused(headwise("train", "chooser", lab, *other, "--text", text, "-o", "d.safetensors"), "other options")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (("--inputs", "all"), "unknown inputs 'all'"),
        (("--loss", "kl"), "unknown loss 'kl'"),
        (("--length", 20), "length must be"),
        (("--length", 5000), "positions"),
        (("--rate", 7), "rate must lie"),
        (("--share", -1), "share in"),
        (("--heads", "none.json"), "no such head file"),
        (("--text", "none"), "no such training folder: none"),
        (("--output", "."), "is a folder"),
        (("--seed", 2**64), "the seed must be"),
        (("--length", 1200, "--text", "texts"), "its last twentieth is held out"),
    ],
)
@pytest.mark.usefixtures("text")
def test_bad_input_is_one_line(lab, headwise, given, part):
    check_refused(headwise("train", "chooser", lab, *SMALL, "-o", "c.safetensors", *given), part)
