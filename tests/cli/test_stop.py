"""Commands that are stopped: what they leave behind, what they say, and that the same command goes on."""

import os
import signal

import pytest


def stop_by(number):
    def stop(*_args, **_options):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal came late")

    return stop


def command(planted, heads, name):
    """Arguments, and where the figure of this command is drawn."""
    small = [planted.model, *planted.own, "--lengths", "120", "--depths", "2"]
    return {
        "detect": (["detect", *small, "-o", "r.json"], "heat_map", "r.heatmap.png"),
        "needle": (["needle", *small, "-o", "r.json"], "needle_grid", "r.png"),
        "ablate": (
            ["ablate", *small, "--heads", heads, "--top", "1", "--controls", "1", "-o", "r.json"],
            "ablation_curves",
            "r.png",
        ),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("name", ["detect", "needle", "ablate"])
def test_a_command_stopped_before_its_picture_is_finished_by_the_same_command(
    planted, heads, headwise, tmp_path, monkeypatch, name, number, code
):
    arguments, draw, picture = command(planted, heads, name)
    with monkeypatch.context() as patch:
        patch.setattr(f"headwise.report.{draw}.{draw}", stop_by(number))
        stopped = headwise(*arguments)
    assert stopped.code == code
    assert stopped.err.splitlines()[-1] == "headwise: stopped; run the same command again to continue"
    assert not (tmp_path / "r.json").exists()
    done = headwise(*arguments)
    assert done.code == 0, done.err
    assert (tmp_path / "r.json").exists()
    assert (tmp_path / picture).exists()
    assert not (tmp_path / "r.json.run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_keeps_nothing_does_not_say_that_it_would_continue(planted, headwise, monkeypatch, number, code):
    monkeypatch.setattr("headwise.models.load.load", stop_by(number))
    stopped = headwise("info", planted.model)
    assert (stopped.code, stopped.err.strip()) == (code, "headwise: stopped")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detect", "needle", "ablate"])
def test_a_folder_of_the_user_beside_the_result_is_not_touched(planted, heads, headwise, tmp_path, name):
    mine = tmp_path / "r.json.run" / "paper.tex"
    mine.parent.mkdir()
    mine.write_text("mine")
    refused = headwise(*command(planted, heads, name)[0])
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "r.json.run holds files, but no run of headwise" in refused.err
    assert mine.read_text() == "mine"
