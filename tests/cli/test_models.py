"""`headwise models`: what is there, where it lies, and one line for what is not."""

import json
from pathlib import Path

import pytest

from headwise.models import names, registry

LAB = Path(__file__).parents[2] / "lab" / "src" / "headwise_lab" / "models"


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_list_names_every_model_and_the_command_that_brings_it(headwise, monkeypatch):
    monkeypatch.setattr(names, "bundled_models", lambda: {"lab-6m": Path("there")})
    rows = {row["name"]: row for row in json.loads(headwise("models", "list", "--json").out)["models"]}
    assert rows["smollm2"]["folder"] is None
    assert rows["smollm2"]["command"] == "headwise models get smollm2"
    assert rows["lab-6m"]["folder"] == "there"
    assert (rows["world-6m"]["folder"], rows["world-6m"]["command"]) == (None, "pip install -e lab (in a clone of headwise)")
    shown = headwise("models", "list").out
    assert all(name in shown for name in rows)
    assert "smollm2 is brought by: headwise models get smollm2" in shown


def test_the_lab_models_of_the_list_are_those_of_the_lab():
    assert {path.parent.name for path in LAB.glob("*/config.json")} | {"lab-6m"} == set(registry.LAB_MODELS)
    for name, lab in registry.LAB_MODELS.items():
        if name != "lab-6m":
            assert (LAB / name / "model.safetensors").stat().st_size == lab.held


def test_path_prints_the_folder_or_the_command(headwise):
    done = headwise("models", "path", "lab-6m")
    assert (done.code, done.out.strip()) == (0, str(names.bundled_model("lab-6m")))
    assert json.loads(headwise("models", "get", "lab-6m", "--json").out) == {"name": "lab-6m", "folder": done.out.strip()}
    for name, part in (("smollm2", "is not here; run: headwise models get smollm2"), ("smolm2", "did you mean smollm2")):
        done = headwise("models", "path", name)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert part in done.err


def test_offline_a_command_says_what_to_run(headwise):
    done = headwise("info", "smollm2", "--offline", "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.strip().endswith("--offline forbids fetching it; with a network run: headwise models get smollm2")
