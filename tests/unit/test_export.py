"""Exported checkpoints behave as the ablated model, and an export that fails leaves nothing behind."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from headwise.attention import ablate
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import Model
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
        ([], "zero", "no head to silence"),
    ],
)
def test_what_cannot_be_exported_is_refused(llama, tmp_path, heads, mode, message):
    with pytest.raises(HeadwiseError, match=message):
        export_ablated(llama, HeadSet.of(heads, llama.heads.shape), mode, tmp_path / "new")
    with pytest.raises(HeadwiseError, match="belong to a model of 2 layers x 2 heads"):
        export_ablated(llama, HeadSet.of([(0, 1)], (2, 2)), "zero", tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "No space left on device"), HeadwiseError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_an_interrupted_export_leaves_nothing(llama, ids, tmp_path, monkeypatch, error, raised):
    before = logits(llama.hf, ids)

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(llama.hf, "save_pretrained", fail)
    with pytest.raises(raised, match="No space left" if raised is HeadwiseError else None):
        export_ablated(llama, some_heads(llama), "uniform", tmp_path / "new")
    assert not list(tmp_path.iterdir())
    assert torch.equal(logits(llama.hf, ids), before)
