"""Adapters of peft: used inside their wrapper, merged for an export, loaded from their folder."""

import builtins
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from headwise.attention import ablate, observe
from headwise.heads import HeadSet, HeadwiseError, MissingExtraError
from headwise.models.adapters import with_adapter
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import Model, as_model, describe_model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

HEADS = [(1, 2), (3, 5)]
IDS = torch.arange(3, 43)[None]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def test_without_peft_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "lab-6m"}))
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"headwise\[adapters\]"):
        load(str(tmp_path / "adapter"), "cpu")


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def adapted(peft, family="llama", changes=None, **options):
    """A tiny model with a LoRA that changes much. changes: to the model's configuration."""
    options = {"r": 2, "target_modules": ["q_proj", "o_proj", "up_proj"], "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(tiny_model(family, **(changes or {})), peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_a_wrapper_is_taken_off(peft):
    wrapper = adapted(peft)
    model, inner = Model(wrapper), wrapper.get_base_model()
    assert (model.hf, model.adapter) == (inner, wrapper)
    assert as_model(inner).adapter is None
    assert replace(model, name="mine").adapter is wrapper
    with ablate(inner, HeadSet.of(HEADS, (4, 8))):
        expected = logits(inner)
    with ablate(wrapper, HeadSet.of(HEADS, (4, 8))), observe(wrapper, rows=1) as seen:
        assert torch.equal(logits(wrapper), expected)
    assert seen.argmax.shape == (4, 1, 8, 1)


def test_virtual_tokens_are_refused_by_name(peft):
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(HeadwiseError, match=r"virtual tokens \(PREFIX_TUNING\) cannot be used"):
        as_model(peft.get_peft_model(tiny_model("llama"), config))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_observing_and_ablating_see_the_adapter(peft, family):
    model = adapted(peft, family)
    merged = adapted(peft, family).merge_and_unload()
    assert (logits(model) - logits(tiny_model(family))).abs().max() > 0.1
    for given in (model, Model(model).hf):
        with ablate(given, HeadSet.of(HEADS, (4, 8))), observe(given, rows=1) as seen:
            got = logits(given)
        with ablate(merged, HeadSet.of(HEADS, (4, 8))), observe(merged, rows=1) as wanted:
            torch.testing.assert_close(got, logits(merged), atol=1e-4, rtol=1e-4)
        assert torch.equal(seen.argmax, wanted.argmax)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_an_export_holds_the_adapter_in_plain_weights(peft, mode, options, tmp_path):
    wrapper = adapted(peft, **options)
    before = {name: tensor.clone() for name, tensor in wrapper.state_dict().items()}
    export_ablated(Model(wrapper, character_tokenizer()), HEADS, mode, tmp_path / "plain")
    assert not [name for name in load_file(tmp_path / "plain" / "model.safetensors") if "base_layer" in name or "lora" in name]
    with ablate(wrapper, HeadSet.of(HEADS, (4, 8)), mode=mode):
        expected = logits(wrapper)
    for again in (load(str(tmp_path / "plain"), "cpu").hf, AutoModelForCausalLM.from_pretrained(tmp_path / "plain")):
        torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapper.state_dict().items())
    assert json.loads((tmp_path / "plain" / "headwise_ablation.json").read_text())["source"]["adapter"]["merged"] is True


def test_the_model_inside_a_wrapper_is_not_exported_without_it(peft, tmp_path):
    inner = adapted(peft).base_model.model
    with pytest.raises(HeadwiseError, match=r"self_attn\.q_proj has an adapter, and the PeftModel around the model is needed"):
        export_ablated(Model(inner, character_tokenizer()), HEADS, "zero", tmp_path / "no")
    with pytest.raises(HeadwiseError, match="has an adapter, which would go on acting"):
        silence_in_weights(inner, HeadSet.of(HEADS, (4, 8)), "zero")
    assert not list(tmp_path.iterdir())


def write_base(folder, family="llama", **changes):
    tiny_model(family, **changes).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


@pytest.fixture
def folders(peft, tmp_path):
    """Base model and adapter on disk."""
    write_base(tmp_path / "base")
    write_adapter(adapted(peft), tmp_path / "adapter", str(tmp_path / "base"))
    return tmp_path


def write_adapter(wrapper, folder, base):
    wrapper.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_the_folder_of_an_adapter_loads_with_its_base(peft, folders):
    model = load(str(folders / "adapter"), "cpu")
    assert model.name == "adapter"
    assert model.tokenizer.encode("a key") == character_tokenizer().encode("a key")
    torch.testing.assert_close(logits(model.hf), logits(adapted(peft)))
    export_ablated(model, HEADS, "zero", folders / "plain")
    with ablate(model.hf, HeadSet.of(HEADS, (4, 8))):
        torch.testing.assert_close(logits(load(str(folders / "plain"), "cpu").hf), logits(model.hf), atol=1e-5, rtol=1e-5)


def test_an_adapter_is_put_on_a_base_that_is_named_beside_it(peft, folders, caplog):
    model = load(str(folders / "base"), "cpu", adapter=str(folders / "adapter"))
    torch.testing.assert_close(logits(model.hf), logits(adapted(peft)))
    assert model.generate("a key", max_new_tokens=3) == Model(adapted(peft).merge_and_unload(), model.tokenizer).generate(
        "a key", max_new_tokens=3
    )
    told = describe_model(model)
    assert (told["model"], told["adapter"]["name"], told["adapter"]["kind"], told["adapter"]["rank"]) == (
        "base",
        "adapter",
        "LORA",
        2,
    )
    # The same tensors have the same digest, however they came here; one other value gives another.
    here = adapted(peft)
    assert describe_model(Model(here))["adapter"] == told["adapter"] | {"name": "default"}
    with torch.no_grad():
        next(p for name, p in here.named_parameters() if "lora_A" in name)[1, 5] += 1
    assert describe_model(Model(here))["adapter"]["digest"] != told["adapter"]["digest"]
    assert "adapter" not in describe_model(load(str(folders / "base"), "cpu"))
    assert not caplog.messages


def test_another_name_with_tensors_that_fit_is_a_notice(folders, caplog):
    write_adapter_base(folders, "owner/Another-Model")
    load(str(folders / "base"), "cpu", adapter=str(folders / "adapter"))
    expected = "headwise: the adapter 'adapter' was made for 'owner/Another-Model', and is put on 'base'; its tensors fit"
    assert caplog.messages == [expected]
    caplog.clear()
    write_adapter_base(folders, "owner/Base")
    load(str(folders / "base"), "cpu", adapter=str(folders / "adapter"))
    assert not caplog.messages


def write_adapter_base(folders, base):
    path = folders / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"hidden_size": 128}, r"its \S+lora_A\S* has shape 2x64, this model needs 2x128"),
        ("llama", {"num_hidden_layers": 3}, r"here is no base_model\.model\.model\.layers\.3\.\S+"),
        ("gpt_neox", {}, "none of the layers that it changes is in this one"),
    ],
)
def test_an_adapter_of_another_model_is_refused(folders, family, changes, message):
    write_base(folders / "other", family, **changes)
    write_adapter_base(folders, "owner/base")
    with pytest.raises(
        HeadwiseError, match=rf"^the adapter 'adapter' belongs to another model \(it was made for 'owner/base'\): {message}"
    ) as told:
        load(str(folders / "other"), "cpu", adapter=str(folders / "adapter"))
    assert "\n" not in str(told.value)


def test_what_is_no_adapter_is_refused(folders):
    with pytest.raises(HeadwiseError, match=r"is no adapter of peft \(it has no adapter_config.json\)"):
        load(str(folders / "base"), "cpu", adapter=str(folders / "base"))
    with pytest.raises(HeadwiseError, match="no such model folder"):
        load(str(folders / "base"), "cpu", adapter=str(folders / "none"))


@pytest.mark.slow
def test_an_adapter_goes_on_a_gguf_file(peft, tmp_path, capfd):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from tests import gguf_files

    base = gguf_files.write_gguf(tmp_path / "Tiny-Q8_0.gguf", "llama")
    write_adapter(adapted(peft, changes={"vocab_size": base.config.vocab_size}), tmp_path / "adapter", "owner/Tiny")
    model = load(str(tmp_path / "Tiny-Q8_0.gguf"), "cpu", adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(
        logits(model.hf), logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), atol=1e-5, rtol=0
    )
    assert {"source", "adapter"} <= set(describe_model(model))
    assert capfd.readouterr().err == ""


def test_adapters_that_do_not_fit_or_are_broken_are_refused(folders):
    file = folders / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if "layers.2" not in name}, file)
    with pytest.raises(HeadwiseError, match="lacks tensors"):
        load(str(folders / "adapter"), "cpu")
    save_file({name: torch.zeros(3, 3) for name in whole}, file)
    with pytest.raises(HeadwiseError, match="has shape 3x3, this model needs 2x64"):
        load(str(folders / "adapter"), "cpu")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(HeadwiseError, match="cannot load the adapter"):
        load(str(folders / "adapter"), "cpu")
    file.unlink()
    with pytest.raises(HeadwiseError, match="holds no weights"):
        load(str(folders / "adapter"), "cpu")
    (folders / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(HeadwiseError, match="does not name the model of the adapter"):
        load(str(folders / "adapter"), "cpu")


def test_peft_is_not_imported_for_a_plain_model():
    before = set(sys.modules)
    as_model(tiny_model("llama"))
    assert "peft" not in set(sys.modules) - before


def test_an_adapter_without_weights_is_refused_and_the_hub_is_not_asked_for_them(tmp_path, monkeypatch, peft):
    """peft would take the weights of a hub model that has the folder's name."""
    adapted(peft).save_pretrained(tmp_path / "owner" / "adapter")
    (tmp_path / "owner" / "adapter" / "adapter_model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(HeadwiseError, match=r"the adapter 'adapter' holds no weights \(adapter_model.safetensors\)"):
        with_adapter(tiny_model("llama"), Path("owner/adapter"), "adapter")


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("adapter_model.safetensors", b"", "adapter_model.safetensors is empty"),
        ("adapter_config.json", b"[" * 100_000, "adapter_config.json is not JSON"),
        ("adapter_config.json", b"[]", "adapter_config.json is no JSON object"),
    ],
)
def test_damaged_files_of_an_adapter_are_named(tmp_path, peft, file, content, fault):
    adapted(peft).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(HeadwiseError, match=f"cannot load the adapter 'a': {fault}"):
        with_adapter(tiny_model("llama"), tmp_path, "a")


def test_an_adapter_whose_base_cannot_be_told_or_is_an_adapter_is_refused(tmp_path, peft):
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(HeadwiseError, match="does not name the model of the adapter"):
        load(str(tmp_path), "cpu")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(HeadwiseError, match="which is an adapter itself"):  # its own, without end
        load(str(tmp_path), "cpu")
