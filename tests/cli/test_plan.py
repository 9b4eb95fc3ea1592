"""`headwise plan` works from a configuration alone, and refuses what makes no plan."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from headwise.caches import choosers
from headwise.caches.sparse_cache import sparse_decode
from headwise.models.forward import forward
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.testing.tiny import tiny_model
from tests.cli.test_refusals import check_refused

GIVEN = ("--memory", "24GiB", "--requests", "2", "--length", "1k")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with nothing but the configuration of Llama-3.1-8B."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("config") / "llama-8b"
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    ).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return folder


def planned(headwise, *arguments):
    done = headwise("plan", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_llama_8b_from_its_configuration(headwise, llama):
    facts = planned(headwise, llama, "--memory", "24GiB", "--requests", "8", "--length", "64k")
    assert facts["parameters"] == 8_030_261_248
    assert facts["weights_bytes"] == 2 * 8_030_261_248
    assert facts["draft_bytes"] == 2 * 4096 * (32 + 8) * 128
    assert facts["lengths"] == [65_536] * 8
    assert facts["host_bytes"] == len(facts["layers_on_host"]) * 8 * 65_536 * 4096
    assert facts["layers_on_host"] == list(range(32 - len(facts["layers_on_host"]), 32))
    assert facts["layers_on_device"] + len(facts["layers_on_host"]) == 32
    assert facts["device_bytes"] <= facts["memory"] < facts["device_bytes_all"]
    moved = len(facts["layers_on_host"]) * 8 * 2048 * 4096
    assert facts["moved_bytes_without_overlap"] == moved
    assert facts["moved_bytes"] == pytest.approx(0.2 * moved, abs=1)
    assert facts["moved_seconds"] == facts["moved_bytes"] / 25e9
    assert facts["thresholds"][len(facts["layers_on_host"]) - 1] < 65_536 <= facts["thresholds"][len(facts["layers_on_host"])]
    assert facts["largest_batch_on_device"] < 8 <= facts["largest_batch"]


def test_the_paper_s_numbers_from_the_command_line(headwise, llama):
    """A full draft layer and copied heads as printed; the draft's weights are ours (42 MB, the paper has 60)."""
    facts = planned(headwise, llama, "--memory", "80GB", "--requests", "32", "--length", "12k", "--draft", "1", "--alpha", "4")
    assert [round(facts["thresholds"][i] / 1000) for i in (0, 16, 32)] == [12, 20, 77]


def test_the_table_names_the_layers(headwise, llama):
    done = headwise("plan", llama, "--memory", "24GiB", "--requests", "8", "--length", "64k")
    assert done.code == 0, done.err
    for part in ("llama-8b, 8,030,261,248 parameters", "8 of 65,536 tokens", "layers on the host", "to 31", "at 25 GB/s"):
        assert part in done.out
    assert str(llama.parent) not in done.out


def test_the_bundled_model_fits_and_nothing_moves(headwise):
    facts = planned(headwise, *GIVEN)
    assert (facts["model"], facts["parameters"]) == ("lab-6m", 5_771_520)
    assert (facts["layers_on_host"], facts["moved_bytes"], facts["host_bytes"]) == ([], 0, 0)
    assert "none" in headwise("plan", *GIVEN).out


def test_unequal_requests_and_dtype(headwise):
    one = planned(headwise, "lab-6m", "--memory", "1GB", "--length", "1000,200", "--dtype", "float32")
    two = planned(headwise, "lab-6m", "--memory", "1GB", "--length", "600", "--requests", "2", "--dtype", "float32")
    assert one["device_bytes"] == two["device_bytes"]
    assert one["weights_bytes"] == 4 * 5_771_520


def test_sliding_layers_stay_on_the_device(headwise, tmp_path):
    tiny_model("gemma2").config.save_pretrained(tmp_path / "gemma")
    facts = planned(headwise, tmp_path / "gemma", "--memory", "1GB", "--length", "50", "--draft", "0")
    assert 0 < facts["sliding_layers"] < facts["layers"]
    assert len(facts["thresholds"]) == facts["layers"] - facts["sliding_layers"] + 1
    assert facts["draft_bytes"] == 0


@pytest.mark.parametrize("name", ["lab-6m", "tiny"])
def test_planned_bytes_are_those_of_a_cache(headwise, tmp_path, name):
    """Keys and values per token, and the slots, of two requests."""
    source, length, budget, count = "lab-6m", 90, 48, 2
    if name == "tiny":
        source = tmp_path / "tiny"
        tiny_model("llama").save_pretrained(source)  # 8 query heads, 2 KV heads
        hf = tiny_model("llama")
    else:
        hf = load(source, "cpu").hf
    given = ("--memory", "1GB", "--requests", count, "--budget", budget, "--dtype", "float32", "--draft", "0")
    first, then = (planned(headwise, source, "--length", tokens, *given) for tokens in (length, 2 * length))
    with sparse_decode(hf, choosers.Random(), budget=budget, placement="host", check=False) as cache, torch.no_grad():
        forward(hf, torch.full((count, length - 1), 7), cache)
        assert cache.slot_bytes == 0
        forward(hf, torch.full((count, 1), 7), cache)
        held, slots = cache.nbytes, cache.slot_bytes
    assert cache.get_seq_length() == length
    assert then["device_bytes_all"] - first["device_bytes_all"] == held  # what as many tokens more take
    assert first["device_bytes_least"] - first["weights_bytes"] - first["buffer_bytes"] == slots
    every = headwise("plan", source, "--length", length, *given[2:], "--memory", then["device_bytes_least"], "--json")
    assert every.code == 0, every.err
    facts = json.loads(every.out)
    assert len(facts["layers_on_host"]) > 0
    assert facts["host_bytes"] * facts["layers"] == held * len(facts["layers_on_host"])
    assert facts["moved_bytes_without_overlap"] * facts["layers"] == slots * len(facts["layers_on_host"])


def test_a_hub_model_of_which_only_the_configuration_is_fetched(headwise, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    served = tmp_path / "served"
    tiny_model("llama").config.save_pretrained(served)
    asked = []

    def info(_, name, **__):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json"), SimpleNamespace(rfilename="model.safetensors")])

    def file(repo, filename, *_, **__):
        asked.append((repo, filename))
        found = served / filename
        return str(found) if found.is_file() else None

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a whole model was asked for"))
    monkeypatch.setattr("transformers.configuration_utils.cached_file", file)
    facts = planned(headwise, "owner/tiny", "--memory", "1GB", "--length", "100", "--dtype", "float32")
    assert (facts["model"], facts["layers"]) == ("owner/tiny", 4)
    assert asked
    assert set(asked) == {("owner/tiny", "config.json")}


def test_a_hub_model_that_is_not_here_cannot_be_planned_offline(headwise, tmp_path, monkeypatch):
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    check_refused(headwise("plan", "owner/tiny-thing", "--memory", "1GB", "--length", "100", "--offline"), "--offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_refused(headwise("plan", "owner/tiny-thing", "--memory", "1GB", "--length", "100"), "owner/tiny-thing")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--memory", "plenty"], ["--memory takes a size like 24GiB", "'plenty'"]),
        (["--memory", "0"], ["--memory takes a size"]),
        (["--memory", "-5GB"], ["--memory takes a size"]),
        (["--memory", "9" * 400 + "GB"], ["--memory takes a size"]),
        (["--memory", "1MB"], ["0.95 MiB of memory cannot hold the weights", "14."]),
        (["--memory", "16MB", "--requests", "1000"], ["do not fit", "fewer or shorter requests"]),
        (["--length", "2k"], ["2048 tokens", "lab-6m", "1280 positions"]),
        (["--length", "long"], ["--length takes numbers of tokens", "'long'"]),
        (["--length", "1k,"], ["--length takes numbers of tokens"]),
        (["--length", "10,20,30"], ["--length names 3 requests, --requests 2"]),
        (["--requests", "0"], ["--requests"]),
        (["--requests", "many"], ["--requests"]),
        (["--budget", "0"], ["--budget"]),
        (["--dtype", "int4"], ["unknown dtype 'int4'", "bfloat16"]),
        (["--overlap", "1.5"], ["--overlap"]),
        (["--overlap", "nan"], ["overlap"]),
        (["--alpha", "nan"], ["alpha"]),  # told by typer or by the planner, by typer's version
        (["--bandwidth", "fast"], ["--bandwidth takes a size"]),
        (["--gguf-file", "x.gguf"], ["--gguf-file changes nothing here"]),
        (["--adapter", "x"], ["--adapter changes nothing here"]),
    ],
)
def test_what_makes_no_plan_is_refused(headwise, arguments, parts):
    check_refused(headwise("plan", "lab-6m", *GIVEN, *arguments), *parts)


@pytest.mark.slow
def test_models_that_are_none_are_refused(headwise, tmp_path):
    (tmp_path / "empty").mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    mamba = tmp_path / "mamba"
    mamba.mkdir()
    (mamba / "config.json").write_text('{"model_type": "mamba"}')
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((bundled_model() / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}))
    for model, part in (
        ("/no/such/model", "no such model folder"),
        (tmp_path / "empty", "holds no config.json"),
        (adapter, "is an adapter; give its base model"),
        (broken, "config.json is not JSON"),
        (mamba, "without attention heads"),
        (odd, "odd"),
        ("some/file.gguf", "is a GGUF file"),
    ):
        check_refused(headwise("plan", model, *GIVEN), part)


def test_memory_and_length_must_be_given(headwise):
    check_refused(headwise("plan", "lab-6m", "--length", "1k"), "--memory")
    check_refused(headwise("plan", "lab-6m", "--memory", "1GB"), "--length")


def test_weights_are_never_read(headwise, tmp_path):
    shutil.copytree(bundled_model(), tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.write_bytes(b"no weights at all")
    assert planned(headwise, tmp_path / "model", *GIVEN)["parameters"] == 5_771_520
