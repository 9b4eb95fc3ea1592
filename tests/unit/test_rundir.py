"""Run directories: folders of others are never touched, changed cells never count, and only our own files are removed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headwise.heads import HeadwiseError
from headwise.heads.files import can_continue
from headwise.runtime.rundir import RunDirectory

CELL = {"scores": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}, [{"depth": 0.5}]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": b"mine"},
        {"run.json": b"{}"},
        {"run.json": b'{"seed": 0}'},  # as another program, or a headwise of before, wrote it
        {"run.json": b"\xff\xfe"},
        {"run.json": b"[" * 100_000},
        {"a.npz": b"mine"},
        {"deep/paper.tex": b"mine"},
    ],
    ids=str,
)
def test_a_folder_of_somebody_else_is_refused_and_stays(tmp_path, content):
    folder = tmp_path / "exp.run"
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(HeadwiseError, match=r"^[^\n]*exp\.run holds files, but no run of headwise; move it away or choose"):
        RunDirectory(folder, {"seed": 0})
    assert files(folder) == content


def test_a_folder_that_appeared_during_the_run_is_not_removed(tmp_path):
    directory = RunDirectory(tmp_path / "run", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    directory.remove()
    assert files(tmp_path) == {"run/notes.txt": b"mine"}


def test_only_our_own_files_are_removed(tmp_path):
    folder = tmp_path / "run"
    directory = RunDirectory(folder, {})
    directory.save("a", *CELL)
    np.savez(folder / "mine.npz", values=np.zeros(3))
    (folder / "notes.txt").write_text("mine")
    (folder / "deep").mkdir()
    (folder / ".b.npz.123.tmp").write_bytes(b"cut")  # of a killed process
    outside = tmp_path / "outside.npz"
    shutil.copy(folder / "a.npz", outside)
    (folder / "link.npz").symlink_to(outside)
    directory.remove()
    assert sorted(path.name for path in folder.iterdir()) == ["deep", "link.npz", "mine.npz", "notes.txt"]
    assert outside.exists()


def test_an_empty_folder_of_somebody_else_is_refused_and_stays(tmp_path):
    (tmp_path / "exp.run").mkdir()
    with pytest.raises(HeadwiseError, match=r"^[^\n]*exp\.run is an empty folder that no run made; delete it or choose another"):
        RunDirectory(tmp_path / "exp.run", {"seed": 0})
    assert (tmp_path / "exp.run").is_dir()


@pytest.mark.parametrize("content", [{}, {"notes.txt": "mine"}])
def test_a_folder_of_somebody_else_that_appeared_meanwhile_is_refused_before_anything_is_written(tmp_path, content):
    directory = RunDirectory(tmp_path / "run", {})
    (tmp_path / "run").mkdir()
    for name, text in content.items():
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(HeadwiseError, match=r"run (is an empty folder|holds files)"):
        directory.save("a", *CELL)
    assert files(tmp_path) == {f"run/{name}": text.encode() for name, text in content.items()}


@pytest.mark.parametrize("step", ["mkdir", "replace", "rename"])
def test_a_run_that_was_killed_while_its_folder_was_made_begins_again(tmp_path, monkeypatch, step):
    """At every step the folder is there with its mark or not at all; what is left beside it goes with the run."""

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    first = RunDirectory(tmp_path / "run", {"seed": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "replace" else Path, step, killed)
        patch.setattr(Path, "unlink", killed)  # a dead process tidies nothing
        with pytest.raises(KilledError):
            first.save("a", *CELL)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
    again = RunDirectory(tmp_path / "run", {"seed": 1})
    again.save("a", *CELL)
    assert again.load("a") is not None
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_while_its_folder_was_removed_leaves_the_name_free(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "run", {"seed": 1})
    directory.save("a", *CELL)
    with monkeypatch.context() as patch:
        patch.setattr("headwise.runtime.rundir._remove_temporary", lambda folder: None)  # killed before this
        directory.remove()
    assert not (tmp_path / "run").exists()
    again = RunDirectory(tmp_path / "run", {"seed": 2})
    again.save("a", *CELL)
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_process_may_open_a_run_twice(tmp_path):
    both = [RunDirectory(tmp_path / "run", {"seed": 1}) for _ in range(2)]
    for key, directory in zip("ab", both, strict=True):
        directory.save(key, *CELL)
    assert all(directory.load(key) is not None for directory in both for key in "ab")


BESIDE = """
import sys
from pathlib import Path
import numpy as np
from headwise.heads import HeadwiseError
from headwise.runtime.rundir import RunDirectory

try:
    directory = RunDirectory(Path(sys.argv[1]), {"seed": 1})
    print("open", flush=True)
    for line in sys.stdin:
        directory.save(line.strip(), {"scores": np.zeros(1)}, [{}])
        print("saved", flush=True)
except HeadwiseError as error:
    print(error, flush=True)
"""


class Beside:
    """Another process at a run: each cell that it is told to save is answered by a line."""

    def __init__(self, folder):
        command = [sys.executable, "-c", BESIDE, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def said(self):
        return self.process.stdout.readline().strip()

    def save(self, key):
        self.process.stdin.write(f"{key}\n")
        self.process.stdin.flush()
        return self.said()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def beside():
    made = []

    def start(folder):
        made.append(Beside(folder))
        return made[-1]

    yield start
    for one in made:
        one.kill()


IN_USE = r"^another process is at the run in [^\n]*run; wait for it, or give another --output$"


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_refused_until_that_ends(tmp_path, beside):
    other = beside(tmp_path / "run")
    assert other.said() == "open"
    early = RunDirectory(tmp_path / "run", {"seed": 1})  # nothing is there yet, so nobody knows of the other one
    assert other.save("a") == "saved"
    before = files(tmp_path)
    with pytest.raises(HeadwiseError, match=IN_USE):
        early.save("b", *CELL)
    with pytest.raises(HeadwiseError, match=IN_USE):
        RunDirectory(tmp_path / "run", {"seed": 1})
    assert files(tmp_path) == before
    other.kill()  # leaves nothing to tidy
    again = RunDirectory(tmp_path / "run", {"seed": 1})
    assert again.load("a") is not None
    again.save("b", *CELL)
    assert re.match(IN_USE, beside(tmp_path / "run").said())
    again.remove()
    assert list(tmp_path.iterdir()) == []
    fresh = beside(tmp_path / "run")
    assert [fresh.said(), fresh.save("a")] == ["open", "saved"]
    with pytest.raises(HeadwiseError, match=IN_USE):  # the lock of a run that is over says nothing about the next one
        again.save("c", *CELL)


def changed(path, **arrays):
    """The cell with other content, written as anybody with numpy would."""
    with np.load(path) as data:
        held = {name: data[name] for name in data.files}
    np.savez_compressed(path, **{**held, **arrays})


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: changed(path, scores=np.full((1, 2, 3), np.nan, np.float32)),
        lambda path: changed(path, scores=np.full((1, 2, 3), 7.0, np.float32)),
        lambda path: changed(path, scores=np.zeros((5, 5), np.float32)),
        lambda path: changed(path, scores=np.asarray(["a"])),
        lambda path: changed(path, info=np.asarray("[" * 100_000)),
        lambda path: changed(path, info=np.asarray('{"depth": "x"}')),
        lambda path: path.write_bytes(path.with_name("b.npz").read_bytes()),  # the cell of another key
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ],
)
def test_a_changed_cell_counts_as_unfinished(tmp_path, tamper):
    directory = RunDirectory(tmp_path / "run", {})
    directory.save("a", *CELL)
    directory.save("b", {"scores": CELL[0]["scores"] + 1}, CELL[1])
    tamper(tmp_path / "run" / "a.npz")
    assert directory.load("a") is None
    assert directory.load("b") is not None


def test_a_cell_of_another_run_counts_as_unfinished(tmp_path):
    for seed in (0, 1):
        RunDirectory(tmp_path / f"run{seed}", {"seed": seed}).save("a", *CELL)
    shutil.copy(tmp_path / "run0" / "a.npz", tmp_path / "run1" / "a.npz")
    assert RunDirectory(tmp_path / "run1", {"seed": 1}).load("a") is None


def test_the_marker_says_what_the_run_was(tmp_path):
    RunDirectory(tmp_path / "run", {"seed": 3}).save("a", *CELL)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"headwise_run": 1, "description": {"seed": 3}}
    with pytest.raises(HeadwiseError, match="belongs to a run with other options"):
        RunDirectory(tmp_path / "run", {"seed": 4})


def test_a_run_can_be_continued_between_its_first_cell_and_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("headwise.heads.files._kept", set())
    assert not can_continue()
    directory = RunDirectory(tmp_path / "run", {})
    assert not can_continue()
    directory.save("a", *CELL)
    assert can_continue()
    directory.remove()
    assert not can_continue()
    directory.save("a", *CELL)
    again = RunDirectory(tmp_path / "run", {})
    directory.remove()
    assert again.load("a") is None
    assert not can_continue()
