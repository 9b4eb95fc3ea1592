"""`headwise detect [NAME] MODEL`: commands made from the installed detectors, and what must not be given to them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import headwise as hw
from headwise.cli import detect, options
from headwise.heads import HeadwiseError, load_heads
from headwise.methods.copy.options import Copy
from headwise.models.load import load
from headwise.runtime.detector import find
from tests.cli.test_refusals import check_refused

OURS = {"copy", "semantic", "query", "evidence", "mdqa", "gate", "proxy"}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["query", "lab-6m", "--lengths", "77777"], "--lengths"),
        (["query", "lab-6m", "--match", "banana"], "--match"),
        (["proxy", "lab-6m", "--chat"], "--chat"),
        (["gate", "lab-6m", "--chat"], "--chat"),
        (["gate", "lab-6m", "--window", "128,256"], "--window"),
        (["lab-6m", "--data", "x.jsonl"], "--data"),
        (["copy", "lab-6m", "--gate", "0.5"], "--gate"),
        (["evidence", "lab-6m", "--trim", "2"], "--trim"),
    ],
)
def test_an_option_of_another_detector_cannot_be_given(headwise, arguments, option):
    check_refused(headwise("detect", *arguments), f"No such option: {option}")


def test_every_detector_has_its_own_options_and_the_common_ones():
    group = typer.main.get_command(detect.app)
    commands = {name: group.get_command(None, name) for name in group.list_commands(None)}
    assert group.get_command(None, "qwery") is None
    assert set(commands) >= OURS
    assert next(iter(commands)) == "copy"
    names = {name: {option for p in commands[name].params for option in p.opts if option.startswith("--")} for name in commands}
    common = {"--" + name for name in detect.COMMON if name != "model"} | {"--seed", "--help"}
    shared = set.intersection(*names.values()) | {"--help"}
    assert shared == common
    assert "--trim" in names["query"] - names["evidence"]
    assert {"--sinks", "--recent", "--layer-order"} <= names["gate"]


@pytest.mark.slow
def test_without_a_name_the_default_detector_runs(planted, headwise, tmp_path):
    small = [*planted.own, "--lengths", "90", "--depths", "1"]
    for words, path in ((["detect", planted.model], "a.json"), (["detect", "copy", planted.model], "b.json")):
        assert headwise(*words, *small, "-o", path, "--json").code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert detect.with_default(["--json"]) == ["copy", "--json"]
    assert detect.with_default([]) == ["copy"]
    assert detect.with_default(["query", "m"]) == ["query", "m"]
    (tmp_path / "qwery").mkdir()
    assert detect.with_default(["qwery"]) == ["copy", "qwery"]  # a folder of that name


@pytest.mark.parametrize("command", ["detect", "needle", pytest.param("ablate", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_depths_that_share_a_place_are_told_and_kept(planted, headwise, heads, command):
    more = ["--heads", heads, "--top", "1", "--controls", "1", "--no-perplexity"] if command == "ablate" else []
    given = (command, planted.model, *planted.own, *more, "--json", "-o")
    done = headwise(*given, "few.json", "--lengths", "60", "--depths", "9")
    assert done.code == 0, done.err
    result = json.loads(Path("few.json").read_text())
    (row,) = (result if command != "detect" else result["provenance"])["shared_places"]
    assert (row["length"], row["depths"]) == (60, 9)
    assert 1 <= row["places"] < 9
    told = [line for line in done.err.splitlines() if "share" in line]
    assert told == [
        f"headwise: 9 depths share {row['places']} places in 60 tokens: needles stand between sentences only; longer contexts have more places"
    ]
    done = headwise(*given, "one.json", "--lengths", "60", "--depths", "1")
    assert "share" not in done.err


def test_a_detector_behind_the_model_is_told_in_the_right_order(headwise):
    check_refused(headwise("detect", "lab-6m", "copy"), "the detector comes before the model: headwise detect copy lab-6m")
    check_refused(headwise("detect", "lab-6m", "query", "--trim", "2"), "headwise detect query lab-6m")
    check_refused(headwise("detect", "lab-6m", "copi"), "unknown detector 'lab-6m'")


@pytest.mark.slow
def test_python_is_the_command_line(planted, headwise, tmp_path):
    done = headwise(
        "detect", planted.model, *planted.own, "--lengths", "90,120", "--depths", "2", "--name", "mine", "-o", "a.json", "--json"
    )
    assert done.code == 0, done.err
    model = hw.Model(*(lambda m: (m.hf, m.tokenizer))(load(planted.model, "cpu")), "mine")
    detector = Copy(lengths=[90, 120], depths=2, needles=str(planted.needles), haystack=str(planted.haystack))
    assert detector == Copy(lengths=(90, 120), depths=2, needles=planted.needles, haystack=planted.haystack)
    hw.save_heads(find(model, detector), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert load_heads(tmp_path / "a.json").provenance["model"] == "mine"


@pytest.mark.slow
def test_results_name_the_model_and_no_path(planted, headwise, tmp_path):
    assert headwise("detect", planted.model, *planted.own, "--lengths", "90", "--depths", "1", "-o", "a.json", "--json").code == 0
    assert load_heads(tmp_path / "a.json").provenance["model"] == "model"
    assert str(tmp_path.parent.parent) not in (tmp_path / "a.json").read_text().replace("haystack", "")


def test_scores_are_kept_when_nothing_can_be_drawn(planted, headwise, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = headwise("detect", planted.model, *planted.own, "--lengths", "90", "--depths", "1", "-o", "a.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["heat_map"] is None
    assert load_heads(tmp_path / "a.json").top(1).heads == ((1, 2),)
    assert not (tmp_path / "a.json.run").exists()


PLUGIN = '''
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
import numpy as np
from headwise.heads import HeadScores, HeadwiseError


@dataclass(frozen=True)
class LastHead:
    name: ClassVar[str] = "last"
    summary: ClassVar[str] = "The last head of every layer, always."
    strength: float = field(default=1.0, metadata={"help": "What it scores."})
    layers: list[int] | None = field(default=None, metadata={"help": "Which layers."})

    def __post_init__(self):
        if self.strength <= 0:
            raise HeadwiseError(f"strength must be above 0; got {self.strength:g}")

    def find(self, model, run):
        values = np.zeros(model.heads.shape)
        values[list(self.layers or range(len(values))), -1] = self.strength
        run.report(1, 1, "")
        return HeadScores(values, "last", provenance={"model": model.name})
'''


@pytest.fixture
def plugin(tmp_path_factory, monkeypatch):
    """A third party's package, as pip would leave it on the path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "lasthead.py").write_text(PLUGIN)
    meta = folder / "lasthead-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: lasthead\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[headwise.detectors]\nlast = lasthead:LastHead\nlost = no_such_package:Lost\nbare = json:dumps\n")
    monkeypatch.syspath_prepend(str(folder))
    options.installed.cache_clear()
    importlib.invalidate_caches()
    yield folder
    options.installed.cache_clear()
    sys.modules.pop("lasthead", None)


@pytest.mark.slow
def test_another_packages_detector_is_a_command(plugin, planted, headwise, tmp_path):
    shown = headwise("detect", "--help").out
    assert "The last head of every layer, always." in shown
    assert "cannot be imported" in shown  # a broken package is named, and the others still work
    bare = headwise("detect", "bare", planted.model)
    assert (bare.code, bare.err.count("\n")) == (2, 1)
    assert "must be a dataclass with a text `summary`" in bare.err
    done = headwise("detect", "last", planted.model, "--strength", "2", "--layers", "1", "-o", "last.json", "--json")
    assert done.code == 0, done.err
    assert load_heads(tmp_path / "last.json").values.tolist() == [[0, 0, 0, 0], [0, 0, 0, 2]]
    assert (tmp_path / "last.heatmap.png").exists()
    check_refused(headwise("detect", "last", planted.model, "--strength", "0"), "strength must be above 0; got 0")
    check_refused(headwise("detect", "last", planted.model, "--depths", "2"), "No such option: --depths")
    check_refused(headwise("detect", "lost", planted.model), "'lost'", "cannot be imported")


def test_fields_that_no_command_line_can_give_are_named():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Strange:
        table: dict
        name = "strange"

    with pytest.raises(HeadwiseError, match="Strange needs table, which cannot be given on a command line"):
        options.parameters_of(Strange)


@pytest.mark.slow
def test_help_imports_no_torch():
    code = (
        "import sys\nfrom headwise.cli.main import run\nsys.argv = ['headwise', 'detect', '--help']\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\nassert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in OURS)
