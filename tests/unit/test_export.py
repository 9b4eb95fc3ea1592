"""Exported checkpoints behave as the ablated model, and an export that fails leaves nothing behind."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from headwise.attention import ablate
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer


def load_tiny(family):
    model = tiny_model(family)
    return Model(model, character_tokenizer())


def some_heads(model):
    layers = list(model.modules)
    return HeadSet.of([(layers[0], 1), (layers[0], 6), (layers[-1], 0), (layers[-1], 3)], model.heads.shape, "four heads")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 96, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def llama():
    return load_tiny("llama")


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids).logits


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_reloaded_checkpoint_equals_the_ablated_model(family, ids, tmp_path):
    model = load_tiny(family)
    heads, weights = some_heads(model), {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    for mode in ("zero", "uniform"):
        export_ablated(model, heads, mode, tmp_path / mode)
        twin = load(str(tmp_path / mode), "cpu")
        with ablate(model.hf, heads, mode=mode):
            expected = logits(model.hf, ids)
        torch.testing.assert_close(logits(twin.hf, ids), expected, atol=1e-5, rtol=1e-5)
        assert (expected - logits(model.hf, ids)).abs().max() > 1e-3
        assert PreTrainedTokenizerFast.from_pretrained(tmp_path / mode).encode("a key") == model.tokenizer.encode("a key")
        note = json.loads((tmp_path / mode / "headwise_ablation.json").read_text())
        assert (note["mode"], note["scope"], note["chosen_by"]) == (mode, "all", "four heads")
        assert note["heads"] == [str(head) for head in heads]
        assert note["source"]["model_type"] == model.hf.config.model_type
    assert sorted(path.name for path in tmp_path.iterdir()) == ["uniform", "zero"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.hf.state_dict().items())


def test_folders_that_hold_something_are_refused(llama, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for folder in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(HeadwiseError, match="exists and is not an empty folder; give a new one"):
            export_ablated(llama, some_heads(llama), "zero", folder)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export_ablated(llama, some_heads(llama), "zero", tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


@pytest.mark.parametrize(
    ("heads", "mode", "message"),
    [
        ([(0, 1)], "mean", "only zero and uniform can be written into weights; got 'mean'"),
        ([], "zero", "no head to ablate"),
    ],
)
def test_what_cannot_be_exported_is_refused(llama, tmp_path, heads, mode, message):
    with pytest.raises(HeadwiseError, match=message):
        export_ablated(llama, HeadSet.of(heads, llama.heads.shape), mode, tmp_path / "new")
    with pytest.raises(HeadwiseError, match="belong to a model of 2 layers x 2 heads"):
        export_ablated(llama, HeadSet.of([(0, 1)], (2, 2)), "zero", tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), HeadwiseError),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), HeadwiseError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_interrupted_export_leaves_nothing(llama, ids, tmp_path, monkeypatch, error, raised):
    before = logits(llama.hf, ids)

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(llama.hf, "save_pretrained", fail)
    with pytest.raises(raised, match="No space left" if raised is HeadwiseError else None):
        export_ablated(llama, some_heads(llama), "uniform", tmp_path / "deep" / "new")
    assert not list(tmp_path.iterdir())
    assert torch.equal(logits(llama.hf, ids), before)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=40 << 20))
    export_ablated(llama, some_heads(llama), "zero", tmp_path / "fits")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=32 << 20))
    with pytest.raises(HeadwiseError, match=r"new needs 0\.\d+ GB, and 0\.034 GB are free there; nothing was written"):
        export_ablated(llama, some_heads(llama), "zero", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


FULL = """
import resource, signal, sys
from pathlib import Path
from headwise.heads import HeadwiseError
from headwise.models.export import export_ablated
from headwise.models.model import Model
from headwise.models.model import describe_model
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
model = Model(tiny_model("llama"), character_tokenizer())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_ablated(model, [(1, 2)], "zero", Path(sys.argv[1]))
except HeadwiseError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_write_that_the_system_refuses_is_one_line_and_leaves_nothing(tmp_path):
    """As on a full disk, with a limit on the size of a file in its place."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "new")], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"could not write .*new: .*(too large|os error 27).*; nothing was left behind\n", done.stdout), (
        done.stdout
    )
    assert not list(tmp_path.iterdir())


def test_the_dtype_of_the_checkpoint_is_kept(tmp_path):
    half = Model(tiny_model("llama").to(torch.bfloat16), character_tokenizer())
    half.hf.save_pretrained(tmp_path / "half")
    half.tokenizer.save_pretrained(tmp_path / "half")
    export_ablated(load(str(tmp_path / "half"), "cpu", "saved"), [(1, 2), (3, 4)], "zero", tmp_path / "without")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "without"))
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: tensor.dtype for name, tensor in before.items()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (1, 3)
    }
    assert load(str(tmp_path / "without"), "cpu", "saved").hf.dtype == torch.bfloat16


def test_heads_may_be_a_list_of_pairs(llama, tmp_path):
    export_ablated(llama, [(1, 2)], "zero", tmp_path / "list")
    note = json.loads((tmp_path / "list" / "headwise_ablation.json").read_text())
    assert (note["heads"], note["chosen_by"]) == (["L1H2"], "given one by one")
    with pytest.raises(HeadwiseError):
        export_ablated(llama, [(1, 99)], "zero", tmp_path / "no")


class Packed(torch.nn.Linear):
    """As bitsandbytes keeps four bits: two in a byte, in one column."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = torch.nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_packed_weights_can_be_used_but_not_edited(tmp_path, mode):
    hf = tiny_model("llama")
    for layer in hf.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Packed(getattr(layer.self_attn, name)))
    model = Model(hf, character_tokenizer())
    assert model.heads.shape == (4, 8)
    assert len(model.fingerprint) == 16
    with pytest.raises(
        HeadwiseError, match=r"layer 0: \w+.weight is packed \(torch.uint8\); load the model without quantization"
    ):
        export_ablated(model, [(1, 2)], mode, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_offloaded_weights_are_described_and_not_edited(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = Model(accelerate.cpu_offload(tiny_model("llama"), execution_device="cpu"), character_tokenizer())
    assert describe_model(model) == describe_model(load_tiny("llama"))
    with pytest.raises(HeadwiseError, match="is not in memory"):
        export_ablated(model, [(1, 2)], "zero", tmp_path / "new")
    assert not list(tmp_path.iterdir())
