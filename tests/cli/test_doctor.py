"""`headwise doctor` tells what is there without importing it; `headwise` alone tells where to start."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from headwise.cli import environment
from headwise.cli.doctor import examine
from headwise.cli.environment import FEATURES, Package, hub_cache, packages, torch_cuda


def test_every_package_and_extra_is_looked_at(headwise):
    done = headwise("doctor", "--json")
    assert done.code == 0
    facts = json.loads(done.out)
    versions = {package["name"]: package["installed"] for package in facts["packages"]}
    for name in ("torch", "transformers", "safetensors", "numpy", "typer"):
        assert versions[name] == metadata.version(name)
    assert set(FEATURES) == set(metadata.metadata("headwise").get_all("Provides-Extra")) - {"dev", "docs", "test"}
    assert facts["works"]
    assert "lab-6m" in facts["bundled_models"]
    assert {"llama", "gemma2"} <= set(facts["families"])
    assert facts["device"] == ("cuda" if facts["gpus"] and facts["torch_cuda"] else "cpu")


def test_torch_is_not_imported():
    code = "import sys; from headwise.cli.doctor import examine; examine(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_line_is_imported_without_anything_heavy():
    code = "import headwise.cli.main, sys; print(sorted({'numpy', 'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_device_is_what_torch_says():
    import torch

    assert torch_cuda() == torch.version.cuda


def test_extras_of_extras_are_followed():
    names = [package.name for package in packages("ray")]
    assert {"ray", "pyarrow", "fsspec"} <= set(names)
    assert "torch" not in names


def test_what_is_missing_is_named_with_its_remedy(headwise, monkeypatch):
    wanted = ["torch>=2", "gone>=1", "numpy>=99", "lost>=3; extra == 'serve'"]
    monkeypatch.setattr(environment.metadata, "requires", lambda _: wanted)
    assert packages("serve") == [Package("lost", ">=3", None, "not installed")]
    done = headwise("doctor")
    assert done.code == 1
    assert "MISSING: not installed, wanted >=1" in done.out
    assert f"MISSING: {metadata.version('numpy')} does not fit >=99" in done.out
    assert "pip install 'headwise[serve]'" in done.out
    assert "headwise cannot work like this" in done.out


@pytest.mark.parametrize("place", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_hub_models_are_counted_where_the_hub_keeps_them(monkeypatch, tmp_path, place):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    inside = {"HF_HUB_CACHE": ".", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[place]
    monkeypatch.setenv(place, str(tmp_path / "cache"))
    assert hub_cache()["models"] == 0
    (tmp_path / "cache" / inside / "models--a--b").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = hub_cache()
    assert (found["models"], found["offline"]) == (1, True)
    assert Path(found["folder"]) == (tmp_path / "cache" / inside)
    assert found["free"] > 0


def test_a_gpu_that_torch_cannot_use_is_named(headwise, monkeypatch):
    monkeypatch.setattr(environment, "gpus", lambda: ["Big GPU"])
    monkeypatch.setattr(environment, "torch_cuda", lambda: None)
    assert examine()["device"] == "cpu"
    assert "Big GPU cannot be used" in headwise("doctor").out


@pytest.mark.parametrize(("name", "hinted"), [("AMD Ryzen 7", True), ("Intel(R) Xeon(R)", False), (None, False)])
def test_an_amd_processor_is_pointed_to_what_makes_it_faster(headwise, monkeypatch, name, hinted):
    monkeypatch.setattr(environment, "gpus", list)
    monkeypatch.setattr(environment, "processor", lambda: name)
    told = " ".join(headwise("doctor").out.split())
    assert ("docs/faq.md" in told) is hinted
    assert (f"cpu ({name})" in told) is (name is not None)


def test_without_arguments_the_next_step_is_told(headwise):
    done = headwise()
    assert done.code == 2
    assert "Start with: headwise demo" in done.out
    assert done.err == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nope"], "No such command 'nope'. (see headwise --help)"),
        (["lab", "eval", "--nope"], "(see headwise lab eval --help)"),
        (["detect", "--depths", "many"], "Invalid value for '--depths'"),
        (["ablate"], "Missing option '--heads'"),
    ],
)
def test_wrong_usage_is_one_line(headwise, arguments, part):
    done = headwise(*arguments)
    assert done.code == 2
    assert done.err.startswith("headwise: error: ")
    assert done.err.count("\n") == 1
    assert part in done.err


def test_ctrl_c_promises_nothing_where_nothing_is_kept(headwise, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("headwise.cli.doctor.examine", stopped)
    done = headwise("doctor")
    assert done.code == 130
    assert done.err == "headwise: stopped\n"
