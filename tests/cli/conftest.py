"""A planted model on disk, its needles and haystack as a user would bring them, and the command line in this process."""

import json
import sys
from types import SimpleNamespace

import pytest

from headwise.testing.planted import planted_copier, planted_task


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    model, tokenizer = planted_copier()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    task = planted_task()
    (folder / "needles.jsonl").write_text("\n".join(json.dumps(dict(needle)) for needle in task.needles))
    (folder / "hay").mkdir()
    (folder / "hay" / "text.txt").write_text("\n\n".join(task.texts))
    return SimpleNamespace(
        model=str(folder / "model"),
        needles=folder / "needles.jsonl",
        haystack=folder / "hay",
        own=["--needles", str(folder / "needles.jsonl"), "--haystack", str(folder / "hay")],
    )


@pytest.fixture
def headwise(monkeypatch, capsys, tmp_path):
    """headwise(*arguments) -> code, out, err; runs in an empty folder."""
    from headwise.cli.main import run

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("headwise.heads.files._kept", set())  # each call stands for a process of its own
        monkeypatch.setattr(sys, "argv", ["headwise", *map(str, arguments)])
        code = 0
        try:
            run()
        except SystemExit as error:
            code = error.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def heads(planted, headwise, tmp_path):
    """A head file of the planted model."""
    path = tmp_path / "planted.json"
    done = headwise("detect", planted.model, *planted.own, "--lengths", "120", "--depths", "2", "-o", path, "--json")
    assert done.code == 0, done.err
    return path
