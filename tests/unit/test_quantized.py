"""Quantized checkpoints: used where this machine can, and refused by name, in one line, where it cannot."""

import json

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import save_file

pytest.importorskip("accelerate", reason="the extra devices is not installed")

from transformers import AutoModelForCausalLM, LlamaConfig

from headwise.attention import ablate, observe
from headwise.heads import HeadwiseError
from headwise.models import quantized
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import CONFIGS, tiny_model
from headwise.testing.tokenizers import character_tokenizer

HEADS = [(1, 2), (3, 5)]
IDS = torch.arange(3, 43)[None]
BLOCK = 32
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
FP8 = FP8 | {"modules_to_not_convert": ["lm_head"]}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": None,
            "output_activations": None,
        }
    },
}


def write(folder, settings, tensors=None, model=None):
    """A checkpoint that declares a quantization. tensors: of it; by default the plain ones, which such a checkpoint never has."""
    model = tiny_model("llama") if model is None else model
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def packed_fp8(weight):
    """Weight in e4m3, one scale per block; and the numbers that these mean."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    packed = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    return {"weight": packed, "weight_scale_inv": scales}, (
        packed.float().reshape(blocks.shape) * scales[:, None, :, None]
    ).reshape(rows, columns)


def packed_int8(weight):
    """Weight in whole numbers, one scale per row; and the numbers that these mean."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    packed = (weight / scales).round().clamp(-128, 127).to(torch.int8)
    return {"weight": packed, "weight_scale": scales}, packed.float() * scales


def written(folder, settings, pack):
    """A checkpoint whose layers are packed, and the plain model with the numbers that it means."""
    model, tensors = tiny_model("llama"), {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("proj.weight"):
            tensors[name] = tensor.clone()
            continue
        parts, meant = pack(tensor)
        tensors |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        tensor.copy_(meant)
    write(folder, settings, tensors)
    return model


def check_used_as_plain(model, plain):
    """Observing and ablating give what they give on a plain model of the same numbers, and leave it as it was."""
    before, mark = logits(model.hf), model.fingerprint
    torch.testing.assert_close(before, logits(plain), atol=1e-5, rtol=1e-5)
    for mode in ("zero", "uniform"):
        with ablate(plain, HEADS, mode=mode), observe(plain, rows=2) as wanted:
            expected = logits(plain)
        with ablate(model, HEADS, mode=mode), observe(model, rows=2) as seen:
            torch.testing.assert_close(logits(model.hf), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(seen.argmax, wanted.argmax)
    assert torch.equal(logits(model.hf), before)
    assert Model(model.hf, model.tokenizer).fingerprint == mark


def check_export(model, folder):
    """An export of an unpacked model is a plain checkpoint that knows what its weights were."""
    export_ablated(model, HEADS, "zero", folder)
    again = load(str(folder), "cpu")
    with ablate(model, HEADS):
        torch.testing.assert_close(logits(again.hf), logits(model.hf), atol=1e-5, rtol=1e-5)
    assert describe_model(again)["source"] == describe_model(model)["source"]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


# What works on a CPU


def test_fp8_weights_are_unpacked(tmp_path):
    plain = written(tmp_path / "fp8", FP8, packed_fp8)
    model = load(str(tmp_path / "fp8"), "cpu")
    assert describe_model(model)["source"] == {"format": "FP8", "quantization": "e4m3, blocks of 32x32"}
    check_used_as_plain(model, plain)
    if Version(transformers.__version__) >= Version(
        "5.24"
    ):  # before, transformers writes the scales into the unpacked copy, which `load` refuses
        check_export(model, tmp_path / "plain")


def test_compressed_tensors_are_unpacked(tmp_path):
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
    plain = written(tmp_path / "int8", INT8, packed_int8)
    model = load(str(tmp_path / "int8"), "cpu")
    assert describe_model(model)["source"] == {"format": "compressed-tensors", "quantization": "int-quantized, 8 bits int"}
    check_used_as_plain(model, plain)
    check_export(model, tmp_path / "plain")


@pytest.mark.parametrize(("option", "words"), [("load_in_4bit", "4 bits fp4"), ("load_in_8bit", "8 bits")])
def test_bitsandbytes_weights_are_used_packed(option, words, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    base = tiny_model("llama", hidden_size=128, intermediate_size=128)  # its CPU kernels need whole blocks of 64
    base.save_pretrained(tmp_path / "base")
    settings = BitsAndBytesConfig(**{option: True})
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings, device_map="cpu").save_pretrained(
        tmp_path / "q"
    )
    character_tokenizer().save_pretrained(tmp_path / "q")
    check_packed(tmp_path / "q", {"format": "bitsandbytes", "quantization": words}, tmp_path)


def test_torchao_weights_are_used_packed(tmp_path):
    pytest.importorskip("torchao", reason="the package torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    tiny_model("llama").save_pretrained(tmp_path / "base")
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, device_map="cpu", dtype=torch.float32
    ).save_pretrained(tmp_path / "q")
    character_tokenizer().save_pretrained(tmp_path / "q")
    check_packed(tmp_path / "q", {"format": "torchao", "quantization": "Int8WeightOnlyConfig"}, tmp_path)


def check_packed(folder, source, tmp_path):
    """The model gives transformers' own logits; it is observed, changed and told apart from others, and not edited."""
    model = load(str(folder), "cpu")
    own = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32).eval()
    assert describe_model(model)["source"] == source
    check_used_as_plain(model, own)
    assert load(str(folder), "cpu").fingerprint == model.fingerprint
    with pytest.raises(HeadwiseError, match=rf"the weights of q are packed \({source['format']}\), and cannot be edited"):
        export_ablated(model, HEADS, "zero", tmp_path / "new")
    with pytest.raises(HeadwiseError, match="are packed"):
        silence_in_weights(model.hf, model.check(HEADS), "uniform")
    assert not (tmp_path / "new").exists()


# What does not

NEEDS = {
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes, which needs bitsandbytes; install with: pip install bitsandbytes"),
    "gptq": (
        {"bits": 4, "group_size": 128},
        "GPTQ, which needs optimum and gptqmodel; install with: pip install optimum gptqmodel",
    ),
    "awq": ({"bits": 4, "group_size": 128}, "AWQ, which needs gptqmodel; install with: pip install gptqmodel"),
    "compressed-tensors": (
        INT8,
        "compressed-tensors, which needs compressed_tensors; install with: pip install compressed-tensors",
    ),
    "torchao": ({}, "torchao, which needs torchao; install with: pip install torchao"),
    "hqq": ({}, "HQQ, whose packed weights need a CUDA device"),
    "quanto": ({}, "Quanto, which needs optimum.quanto; install with: pip install optimum-quanto"),
    "auto-round": ({"bits": 4}, "AutoRound, which needs auto_round; install with: pip install auto-round"),
    "aqlm": ({}, "AQLM, which needs aqlm; install with: pip install 'aqlm[gpu,cpu]'"),
    "fbgemm_fp8": ({}, "FBGEMM FP8, whose packed weights need a CUDA device"),
    "eetq": ({}, "EETQ, whose packed weights need a CUDA device"),
    "higgs": ({}, "HIGGS, whose packed weights need a CUDA device"),
    "vptq": ({}, "VPTQ, whose packed weights need a CUDA device"),
    "spqr": ({}, "SpQR, whose packed weights need a CUDA device"),
    "magic": ({}, "'magic', which cannot be used; these can: bitsandbytes, gptq, awq, fp8"),
}


@pytest.mark.parametrize("method", NEEDS)
def test_what_is_missing_is_named(method, tmp_path, monkeypatch, capfd):
    """As on a machine that has none of the packages, and no CUDA device."""
    settings, message = NEEDS[method]
    monkeypatch.setattr(quantized, "_is_installed", lambda package: False)
    write(tmp_path / "model", {**settings, "quant_method": method})
    capfd.readouterr()
    with pytest.raises(HeadwiseError) as told:
        load(str(tmp_path / "model"), "cpu")
    assert f"is quantized with {message}" in str(told.value)
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_every_method_is_either_unpacked_without_more_or_tested_for_what_it_needs():
    plain = {name for name, method in quantized.METHODS.items() if not method.packages and not method.accelerator}
    assert plain == set(quantized.METHODS) - set(NEEDS) == {"fp8", "mxfp8", "mxfp4"}


def test_weights_that_stay_packed_need_a_device(tmp_path):
    write(tmp_path / "model", FP8)
    with pytest.raises(HeadwiseError, match="quantized with FP8, whose packed weights need a CUDA device; leave --packed out"):
        load(str(tmp_path / "model"), "cpu", packed=True)
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    character_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(HeadwiseError, match="is no GGUF file and not quantized; leave --packed"):
        load(str(tmp_path / "plain"), "cpu", packed=True)


def test_scales_that_are_missing_are_named(tmp_path):
    def without_scales(weight):
        parts, meant = packed_fp8(weight)
        return {"weight": parts["weight"]}, meant

    written(tmp_path / "model", FP8, without_scales)
    with pytest.raises(
        HeadwiseError, match=r"'.*model' lacks the scales of packed tensors: \S+down_proj\.weight, .* and 25 more"
    ) as told:
        load(str(tmp_path / "model"), "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, {"format": "GPTQ", "quantization": "4 bits, groups of 128"}),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, {"format": "GPTQ", "quantization": "8 bits"}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"format": "bitsandbytes", "quantization": "4 bits nf4"}),
        ({"quant_method": "mxfp4"}, {"format": "MXFP4", "quantization": "mxfp4"}),
        ({"quant_method": "magic"}, {"format": "magic", "quantization": "magic"}),
    ],
)
def test_results_name_the_quantization(settings, words):
    config = LlamaConfig(**CONFIGS["llama"])
    assert quantized.source_of(config) is None
    config.quantization_config = settings
    assert quantized.source_of(config) == words
