"""How long the way from a command to its formula is: the number of files of the package in which a function runs.

Counted on the second run in a fresh process, so that what happens once when modules are imported is left out.
"""

import json
import subprocess
import sys

import pytest

COUNT = """
import json, sys, threading
from pathlib import Path
import headwise
from headwise.cli.main import run

root, files = str(Path(headwise.__file__).parent), set()

def note(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and frame.f_code.co_flags & 1 and name.startswith(root):  # 1: a function, not the body of a class or module
        files.add(name[len(root) + 1 :])

def call(words):
    sys.argv = ["headwise", *words]
    try:
        run()
    except SystemExit as done:
        assert not done.code, done.code

words = json.loads(sys.argv[1])
call(words)
threading.setprofile(note)
sys.setprofile(note)
call(words)
sys.setprofile(None)
print("\\n" + json.dumps(sorted(files)))
"""

# The aim is about 20 and never over 25 for each. These are the numbers that are reached: they may only fall.
LIMITS = {"detect": 41, "rank": 28, "generate": 24, "select score": 29}


def files_of(words, folder):
    done = subprocess.run([sys.executable, "-c", COUNT, json.dumps(words)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def commands(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "q", "text": "where is the key?"}\n')
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "the key is red"}\n{"id": "b", "text": "the door is blue"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "The key is red. The door is blue. The key is red."}\n' * 3)
    heads = {"headwise_schema": 1, "score": "copy", "score_version": 1, "layers": 8, "heads": 8, "provenance": {}}
    heads["values"] = [[(8 * layer + head) / 64 for head in range(8)] for layer in range(8)]
    (tmp_path / "h.json").write_text(json.dumps(heads))
    small = ["--max-len", "64", "--batch-tokens", "512"]
    return {
        "detect": ["detect", "lab-6m", "--lengths", "256", "--depths", "2", "-o", "x.json", "--overwrite"],
        "rank": ["rank", "lab-6m", "--queries", "q.jsonl", "--passages", "p.jsonl", "-o", "r.trec", "--overwrite"],
        "generate": ["generate", "lab-6m", "--prompt", "The key is red. The key is", "--max-new-tokens", "4"],
        "select score": [
            "select",
            "score",
            "texts.jsonl",
            "-m",
            "lab-6m",
            "--heads",
            "h.json",
            "--top",
            "2",
            *small,
            "-o",
            "scores",
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_the_way_is_short(commands, tmp_path, name):
    files = files_of(commands[name], tmp_path)
    assert len(files) <= LIMITS[name], f"{len(files)} files: {', '.join(files)}"
