"""GGUF files: the numbers of the original, every way to name a file, and one line for each file that cannot be used."""

import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from headwise.heads import HeadwiseError, MissingExtraError, UnsupportedModelError
from headwise.models import gguf, names
from headwise.models.export import export_ablated
from headwise.models.gguf_header import read_header
from headwise.models.load import load
from headwise.models.model import describe_model
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests import gguf_files as files
from tests.helpers import refused_to_load as refused


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A GGUF file of a tiny llama, and the model it was made of."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, files.write_gguf(path, "llama")


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids).logits


# What a file says is what the model does


@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
@pytest.mark.slow
def test_a_file_gives_the_logits_and_the_tokens_of_the_original(architecture, tmp_path, capfd):
    model = files.write_gguf(tmp_path / "tiny.gguf", architecture)
    loaded = load(str(tmp_path / "tiny.gguf"), "cpu")
    ids = files.ids(files.bpe_tokenizer())
    assert files.ids(loaded.tokenizer).tolist() == ids.tolist()
    torch.testing.assert_close(logits(loaded.hf, ids), logits(model, ids), atol=1e-5, rtol=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_packed_weights_are_those_that_gguf_itself_unpacks(kind, tmp_path):
    from gguf import GGMLQuantizationType, dequantize, quantize

    model = files.write_gguf(tmp_path / "tiny.gguf", "qwen2", kind=kind)
    loaded = load(str(tmp_path / "tiny.gguf"), "cpu")
    weight = model.model.layers[1].self_attn.v_proj.weight.detach().numpy()
    number = GGMLQuantizationType[kind]
    expected = torch.from_numpy(dequantize(quantize(weight, number), number))
    torch.testing.assert_close(loaded.hf.model.layers[1].self_attn.v_proj.weight.detach(), expected, atol=0, rtol=0)
    assert describe_model(loaded)["source"] == {"format": "GGUF", "file": "tiny.gguf", "quantization": kind}


def test_the_chat_template_of_the_file_is_used(made):
    tokenizer = load(str(made[0]), "cpu").tokenizer
    turns = [{"role": "user", "content": "Where?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|start|>user\nWhere?<|end|>\n<|start|>assistant\n"
    found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert found[0] == tokenizer.bos_token_id == tokenizer.get_vocab()["<|start|>"]
    assert tokenizer.decode(found) == text


@pytest.mark.slow
def test_a_conversion_remembers_how_the_weights_were_stored(tmp_path):
    files.write_gguf(tmp_path / "tiny.gguf", "llama", kind="Q8_0")
    first = load(str(tmp_path / "tiny.gguf"), "cpu")
    export_ablated(first, [(1, 2)], "zero", tmp_path / "plain")
    again = load(str(tmp_path / "plain"), "cpu")
    assert describe_model(again)["source"] == describe_model(first)["source"]
    assert again.tokenizer.encode(files.TEXT) == first.tokenizer.encode(files.TEXT)


@pytest.mark.slow
def test_weights_load_in_the_dtype_that_is_asked_for(made):
    assert load(str(made[0]), "cpu", "saved").hf.dtype == torch.bfloat16
    assert load(str(made[0]), "cpu").hf.dtype == torch.float32


# Naming a file


@pytest.mark.slow
def test_a_file_a_folder_and_a_chosen_file_load_alike(made, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "one.gguf").write_bytes(made[0].read_bytes())
    ids = torch.arange(20)[None]
    expected = logits(made[1], ids)
    found = load(str(folder), "cpu")
    assert found.name == "models"
    torch.testing.assert_close(logits(found.hf, ids), expected)
    files.write_gguf(folder / "two.gguf", "qwen2")
    refused(folder, "several GGUF files: one.gguf, two.gguf", "--gguf-file")
    refused(folder, "no file 'three.gguf'", "it holds one.gguf, two.gguf", gguf_file="three.gguf")
    found = load(str(folder), "cpu", gguf_file="one.gguf")
    torch.testing.assert_close(logits(found.hf, ids), expected)
    monkeypatch.chdir(folder)
    assert load("one.gguf", "cpu").name == "one"
    refused("one.gguf", "is a GGUF file itself", gguf_file="one.gguf")
    (folder / "no-ending").write_bytes(made[0].read_bytes())
    assert load("./no-ending", "cpu").name == "no-ending"
    refused("none.gguf", "no such GGUF file: 'none.gguf'")


@pytest.mark.slow
def test_files_that_lie_around_are_not_taken_for_the_models(made, tmp_path, monkeypatch):
    """A file of the same name in the current folder, and another model's tokenizer beside the file."""
    (tmp_path / "here").mkdir()
    files.write_gguf(tmp_path / "here" / "tiny.gguf", "qwen2")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tiny.gguf").write_bytes(made[0].read_bytes())
    character_tokenizer().save_pretrained(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    found = load(str(tmp_path / "there" / "tiny.gguf"), "cpu")
    assert found.hf.config.model_type == "llama"
    assert found.tokenizer.encode(files.TEXT) == files.bpe_tokenizer().encode(files.TEXT)


def test_a_checkpoint_is_preferred_to_a_gguf_file_beside_it(made, tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(made[0].read_bytes())
    assert load(str(tmp_path), "cpu").hf.config.model_type == "qwen2"
    assert load(str(tmp_path), "cpu", gguf_file="tiny.gguf").hf.config.model_type == "llama"


def test_a_file_of_the_hub_is_taken_from_its_cache(made, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--owner--tiny-gguf"
    (place / "snapshots" / commit / "q4").mkdir(parents=True)
    (place / "snapshots" / commit / "q4" / "tiny.gguf").write_bytes(made[0].read_bytes())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = load("owner/tiny-gguf", "cpu", gguf_file="q4/tiny.gguf", offline=True)
    assert (found.name, found.hf.config._commit_hash) == ("owner/tiny-gguf", commit)
    refused("owner/tiny-gguf", "not in the hub's cache", "--offline", gguf_file="other.gguf", offline=True)


def test_what_the_hub_holds_is_named(monkeypatch):
    held = {"a.gguf", "b.gguf", "README.md"}
    with pytest.raises(HeadwiseError, match=r"holds GGUF files: a\.gguf, b\.gguf; choose one with --gguf-file"):
        names._downloaded("owner/name", None, None, held)
    with pytest.raises(HeadwiseError, match=r"has no file 'c\.gguf'; it has a\.gguf, b\.gguf"):
        names._downloaded("owner/name", None, "c.gguf", held)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(Path("cache", "commit", "q4", "a.gguf")))
    assert names._downloaded("owner/name", None, "q4/a.gguf", {"q4/a.gguf"}) == Path("cache", "commit")


# Files that cannot be used


def damaged(path, made, change):
    data = bytearray(made[0].read_bytes())
    path.write_bytes(change(data))
    return path


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data[:-1], "is cut off"),
        (lambda data: data[: len(data) // 2], "is cut off"),
        (lambda data: data[:2000], "is cut off or damaged"),
        (lambda data: data[:10], "is cut off or damaged"),
        (lambda data: data[:4], "is cut off or damaged"),
        (lambda data: b"", "is no GGUF file"),
        (lambda data: b"<!doctype html>", "is no GGUF file"),
        (lambda data: b"GGML" + data[4:], "is no GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "is a GGUF file of version 1"),
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "is a GGUF file of version 9"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "is a big-endian GGUF file"),
        (lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:], "damaged"),
        (lambda data: data[:16] + struct.pack("<Q", 2**63) + data[24:], "is cut off or damaged"),
        (lambda data: data[:24] + struct.pack("<Q", 2**64 - 1) + data[32:], "is cut off or damaged"),
    ],
)
def test_damaged_files_are_refused(change, part, made, tmp_path):
    refused(damaged(tmp_path / "bad.gguf", made, change), "bad.gguf", part)


@pytest.mark.slow
def test_a_file_cut_anywhere_is_refused(made, tmp_path):
    size = made[0].stat().st_size
    for at in range(4, size, size // 40):
        refused(damaged(tmp_path / "cut.gguf", made, lambda data, at=at: data[:at]), "cut off")


def test_any_changed_byte_of_the_head_is_refused_or_read_in_bounded_time(made, tmp_path):
    """Nothing else than one line comes out of a damaged head."""
    told = []
    data, end = made[0].read_bytes(), read_header(made[0]).data
    path = tmp_path / "flipped.gguf"
    for at in range(4, end, 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            gguf.checked_header(path)
        except HeadwiseError as error:
            told.append(str(error))
    assert told
    assert not [line for line in told if "\n" in line or len(line) > 400]


@pytest.mark.parametrize(
    ("architecture", "part"),
    [
        ("bert", "an encoder, not a decoder"),
        ("nomic-bert", "an encoder, not a decoder"),
        ("t5", "an encoder-decoder"),
        ("clip", "the vision part of a model (mmproj)"),
        ("mamba", "a state-space model"),
        ("deepseek2", "multi-head latent attention"),
        ("stablelm", "'stablelm', which is not read from GGUF files; these are: llama"),
    ],
)
def test_other_architectures_are_refused_by_name(architecture, part, made, tmp_path):
    files.write_gguf(tmp_path / "x.gguf", "llama", facts={"general.architecture": architecture})
    refused(tmp_path / "x.gguf", part, repr(architecture) if architecture != "clip" else "mmproj", kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"general.type": "mmproj"}, "the vision part of a model (mmproj)"),
        ({"general.type": "adapter"}, "is an adapter in GGUF"),
        ({"split.count": 3}, "is one of 3 parts"),
        ({"llama.expert_count": 4}, "a mixture of experts"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "stretches positions (RoPE scaling yarn)"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "cuts text by the rule 'deepseek-llm'"),
        ({"llama.attention.key_length": 32}, "reads attention.key_length as 16, where the file means 32"),
        ({"general.alignment": 0}, "aligned to 0 bytes"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(facts, part, tmp_path):
    files.write_gguf(tmp_path / "x.gguf", "llama", facts=facts)
    refused(tmp_path / "x.gguf", part)


def test_scaled_positions_are_refused(tmp_path):
    files.write_gguf(tmp_path / "x.gguf", "llama", extra=["rope_freqs.weight"])
    refused(tmp_path / "x.gguf", "stretches positions (rope_freqs.weight)", "safetensors", kind=UnsupportedModelError)


def test_a_scale_of_attention_that_no_file_states_is_refused(tmp_path):
    files.write_gguf(tmp_path / "x.gguf", "gemma3", files.original("gemma3", head_dim=128, query_pre_attn_scalar=128))
    refused(tmp_path / "x.gguf", "the scale of attention as 256, where the file means 128", kind=UnsupportedModelError)


@pytest.mark.slow
def test_missing_and_left_over_tensors_are_named(tmp_path):
    files.write_gguf(tmp_path / "x.gguf", "llama", skip=["blk.2.attn_q.weight"])
    refused(tmp_path / "x.gguf", "lacks model.layers.2.self_attn.q_proj.weight")
    files.write_gguf(tmp_path / "y.gguf", "llama", extra=["blk.1.attn_v.bias", "blk.9.attn_q.weight"])
    refused(tmp_path / "y.gguf", "holds tensors that this model does not have: blk.1.attn_v.bias, blk.9.attn_q.weight")


def test_packed_weights_are_refused_by_name(made, tmp_path):
    refused(made[0], "architecture 'llama' cannot stay packed", "--packed", packed=True, kind=UnsupportedModelError)
    tiny_model("llama").save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "is no GGUF file", "--packed", packed=True)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_packages_the_extra_is_named(package, made, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*headwise\[gguf\]"):
        load(str(made[0]), "cpu")


def test_a_chosen_file_outside_of_the_models_folder_is_refused(made, tmp_path):
    """Its results would bear the folder's name."""
    folder = tmp_path / "model"
    files.original("llama").save_pretrained(folder)
    (tmp_path / "other.gguf").write_bytes(made[0].read_bytes())
    for chosen in ("../other.gguf", "inside/../../other.gguf", str(tmp_path / "other.gguf")):
        refused(folder, "is not in the model's folder", gguf_file=chosen)
        refused("owner/name", "is not in the model's folder", gguf_file=chosen)


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        ({"split.count": "many"}, ["one of many parts"]),
        ({"split.count": float("nan")}, ["one of nan parts"]),
        ({"split.count": float("inf")}, ["one of inf parts"]),
        ({"llama.block_count": 10**9}, ["its head names 1000000000 layers, it holds tensors of 4"]),
        ({"llama.block_count": 3}, ["holds tensors that this model does not have: blk.3.attn_k.weight"]),
        ({"llama.block_count": "four"}, ["its head names 'four' layers"]),
        ({"llama.attention.sliding_window": "many"}, ["where the file means 'many'"]),
        ({"llama.embedding_length": 10**9}, ["does not fit", "the model has 32x1000000000"]),
        ({"llama.feed_forward_length": 10**9}, ["does not fit", "blk.0.ffn_down.weight has shape"]),
        ({"llama.attention.head_count": 0}, ["cannot load model"]),
    ],
)
def test_a_head_that_makes_no_sense_is_refused_before_anything_is_built(tmp_path, facts, parts, monkeypatch):
    from headwise.models import load as loading

    files.write_gguf(tmp_path / "tiny.gguf", "llama", facts=facts)
    monkeypatch.setattr(loading, "_weights", lambda *_: pytest.fail("built"))
    refused(tmp_path / "tiny.gguf", "tiny.gguf", *parts)


def test_a_token_id_without_a_row_is_refused(tmp_path):
    tokenizer = files.bpe_tokenizer()
    files.write_gguf(tmp_path / "tiny.gguf", "llama", tokenizer=tokenizer)
    data = bytearray((tmp_path / "tiny.gguf").read_bytes())
    key = b"tokenizer.ggml.padding_token_id"
    place = data.index(key) + len(key) + 4
    data[place : place + 4] = struct.pack("<I", 10**9)
    (tmp_path / "tiny.gguf").write_bytes(data)
    refused(tmp_path / "tiny.gguf", "no model can be built from what its head names")
