"""Places that cannot be written: every command that writes after long work refuses them in one line before it begins."""

import os
from pathlib import Path

import pytest

from headwise.cli import options
from tests.cli.test_refusals import check_refused

HTML = (
    ["bench", "cache", "lab-6m"],
    ["bench", "decode", "lab-6m"],
    ["rank", "lab-6m", "--queries", "given", "--passages", "given"],
    ["trace", "lab-6m", "--prompt-file", "given"],
    ["doubt", "calm", "lab-6m", "--heads", "given", "--remedies", "zero"],
)
OUTPUT = (
    *HTML[:3],
    HTML[4],
    ["detect", "lab-6m"],
    ["detect", "doubt", "lab-6m"],
    ["doubt", "measure", "lab-6m"],
    ["doubt", "find", "lab-6m"],
    ["needle", "lab-6m"],
    ["ablate", "lab-6m", "--heads", "given"],
    ["select", "report", "given"],
    ["steer", "conflict", "lab-6m", "--data", "given", "--context", "given"],
    ["steer", "vector", "lab-6m", "--heads", "given", "--prompt", "x"],
    ["trace", "fit", "lab-6m", "--data", "given", "--heads", "given"],
    ["train", "chooser", "lab-6m"],
)
FOLDERS = (["export", "lab-6m", "--heads", "given", "-o"], ["doubt", "calm", "lab-6m", "--heads", "given", "--remedies", "zero", "--export"])
COMMANDS = [
    *([*command, "--html"] for command in HTML),
    *([*command, "-o"] for command in OUTPUT),
    *FOLDERS,
    ["generate", "lab-6m", "--prompt", "x", "--save-cache"],
]


def never(*_, **__):
    raise AssertionError("the model was loaded")


@pytest.fixture
def before_any_work(monkeypatch, tmp_path):
    """No model may be loaded, and nothing may be written."""
    monkeypatch.setattr(options, "load", never)
    (tmp_path / "given").write_text("a file, no folder")
    yield
    assert [path.name for path in tmp_path.rglob("*")] == ["given"]


@pytest.mark.usefixtures("before_any_work")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_below_a_file(headwise, command):
    check_refused(headwise(*command, "given/new"), "cannot write given/new", "given is not a folder that can be written to", "give another --")


@pytest.mark.usefixtures("before_any_work")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_in_a_folder_that_may_only_be_read(headwise, monkeypatch, tmp_path_factory, command):
    """Whoever runs the tests may write everywhere, so the system's answer is changed."""
    folder = tmp_path_factory.mktemp("sealed")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    check_refused(headwise(*command, folder / "new"), f"cannot write {folder / 'new'}: {folder} is not a folder", "give another --")
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("before_any_work")
@pytest.mark.parametrize("command", [*([*one, "--html"] for one in HTML), *([*one, "-o"] for one in OUTPUT)], ids=" ".join)
def test_a_folder_in_place_of_a_file(headwise, command):
    check_refused(headwise(*command, "."), ". is a folder; give a file name with --")


@pytest.mark.usefixtures("before_any_work")
@pytest.mark.parametrize("command", FOLDERS, ids=" ".join)
@pytest.mark.parametrize("place", ["given", "."])
def test_a_file_or_a_full_folder_in_place_of_a_new_one(headwise, command, place):
    check_refused(headwise(*command, place), f"{place} exists and is not an empty folder")


def test_folders_that_are_missing_can_be_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    assert options.check_file(path, "--output", overwrite=False) == path
    assert options.check_new_folder(path, "--export") == path
    assert list(tmp_path.iterdir()) == []
