"""Models whose layers lie on several devices: the numbers of the whole model, and one line for what cannot be done."""

import pytest
import torch

pytest.importorskip("accelerate", reason="the extra devices is not installed")

from transformers import LlamaConfig

from headwise.attention import ablate, observe
from headwise.attention.means import head_means
from headwise.caches.kept_cache import compress
from headwise.heads import HeadwiseError, MissingExtraError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.methods.query.ranker import Ranker
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.models import placement
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import describe_model
from headwise.models.weights import silence_in_weights
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import CONFIGS, tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.helpers import with_cache
from tests.unit.test_find_copy import task_for

HEADS = [(1, 2), (2, 5)]
IDS = torch.arange(3, 43)[None]
PARTS = {"model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
SPLIT = PARTS | {f"model.layers.{layer}": "disk" if layer % 2 == 0 else "cpu" for layer in range(4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("spread") / "tiny"
    tiny_model("llama").save_pretrained(path)
    character_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def pair(folder, tmp_path):
    """The whole model, and the same one split between main memory and the disk."""
    split = load(str(folder), device_map=SPLIT, offload_folder=tmp_path / "off")
    assert placement.is_offloaded(split.hf)
    return load(str(folder), "cpu"), split


@torch.no_grad()
def test_a_split_model_is_observed_changed_and_compressed_as_a_whole_one(pair):
    found = []
    for model in pair:
        hf = model.hf
        before = hf(IDS).logits
        own, means = [before], head_means(hf, [IDS])
        with observe(hf, rows=2, spans=[(1, 9)]) as seen:
            own += [hf(IDS).logits, seen.argmax, seen.lse, seen.mass]
        for mode in ("zero", "uniform", "mean"):
            for scope in ("all", "answer"):
                with ablate(hf, HEADS, mode=mode, scope=scope, means=means if mode == "mean" else None):
                    own.append(hf(IDS).logits)
        for press in (SnapKV(budget=20), StreamingLLM(budget=20)):
            with compress(hf, press) as cache:
                own += [cache.prefill(IDS), hf(IDS[:, :1], **with_cache(cache)).logits]
        found.append([means, *own])
        assert torch.equal(hf(IDS).logits, before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


def test_text_fingerprint_and_provenance_are_those_of_the_whole_model(pair):
    whole, split = pair
    assert split.generate("Where is the key?", max_new_tokens=8) == whole.generate("Where is the key?", max_new_tokens=8)
    with ablate(whole, HEADS), ablate(split, HEADS):
        assert split.generate("Where is the key?", max_new_tokens=8) == whole.generate("Where is the key?", max_new_tokens=8)
    assert split.fingerprint == whole.fingerprint
    assert describe_model(split) == describe_model(whole)


def test_detection_on_a_split_model_gives_the_scores_of_the_whole_one(tmp_path):
    model, tokenizer = planted_copier()
    model.save_pretrained(tmp_path / "planted")
    tokenizer.save_pretrained(tmp_path / "planted")
    places = PARTS | {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(model.config.num_hidden_layers)}
    scores = [
        copy_scores(given, task_for(given, planted_task(), (80,), (0.5,), 2), Copy())
        for given in (
            load(str(tmp_path / "planted"), "cpu", name="planted"),
            load(str(tmp_path / "planted"), name="planted", device_map=places, offload_folder=tmp_path / "off"),
        )
    ]
    assert torch.equal(*(torch.from_numpy(one.values) for one in scores))
    assert scores[0].values.max() > 0.5


def test_ranking_on_a_split_model_gives_the_scores_of_the_whole_one(pair):
    passages = ["The mill is old.", "Ada keeps the key.", "A boat came."]
    rows = [Ranker(model, [(1, 2), (2, 5), (3, 0)]).rank("Who keeps the key?", passages) for model in pair]
    assert [row["corpus_id"] for row in rows[0]] == [row["corpus_id"] for row in rows[1]]
    assert [row["score"] for row in rows[0]] == pytest.approx([row["score"] for row in rows[1]])


def test_weights_that_are_not_in_memory_are_not_edited(pair, tmp_path):
    with pytest.raises(HeadwiseError, match="is not in memory"):
        export_ablated(pair[1], HEADS, "zero", tmp_path / "new")
    with pytest.raises(HeadwiseError, match="is not in memory"):
        silence_in_weights(pair[1].hf, HEADS, "zero")
    assert not (tmp_path / "new").exists()


def test_an_adapter_on_a_split_model_is_refused(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra adapters is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(HeadwiseError, match="needs the whole model in memory, and parts of it are offloaded"):
        load(str(folder), adapter=str(tmp_path / "adapter"), device_map=SPLIT, offload_folder=tmp_path / "off")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": SPLIT}, "puts modules on the disk; say where with offload_folder"),
        ({"offload_folder": "off"}, "offload_folder is read only with a device_map"),
        ({"device_map": "everywhere"}, "unknown device_map 'everywhere'; use auto, balanced"),
        ({"device_map": {}}, "device_map takes auto"),
        ({"device_map": 3}, "device_map takes auto"),
        ({"device_map": "auto", "device": "cpu"}, "both say where the model lies"),
        ({"device_map": {"": 7}}, r"puts '' on CUDA device 7; this torch sees \d"),
        ({"device_map": {"": "cuda:9"}}, r"puts '' on CUDA device 9; this torch sees \d"),
        ({"device_map": {"": "cuda:x"}}, "puts '' on 'cuda:x'; use cpu, disk, or the number"),
        ({"device_map": {"": "tpu"}}, "puts '' on 'tpu'; use cpu, disk, or the number"),
        (
            {"device_map": {"model.layers.0": "disk"}, "offload_folder": "off"},
            r"the device_map names no device for lm_head\.weight, .* and \d+ more$",
        ),
    ],
)
def test_maps_that_cannot_be_are_refused(folder, options, message):
    with pytest.raises(HeadwiseError, match=message) as told:
        load(str(folder), **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_map_of_one_device_is_that_device(folder, device_map):
    if torch.cuda.is_available():
        pytest.skip("auto means CUDA here")
    model = load(str(folder), device_map=device_map)
    assert (placement.is_spread(model.hf), model.hf.device.type, model.hf.dtype) == (False, "cpu", torch.float32)


def machine(monkeypatch, devices, free):
    monkeypatch.setattr("torch.cuda.is_available", lambda: devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))


def test_auto_spreads_over_several_devices_or_where_one_is_too_small(monkeypatch):
    config = LlamaConfig(**CONFIGS["llama"])
    size = sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert placement.size_of(config, torch.bfloat16) == 2 * size
    assert placement.size_of(config, "auto") == 4 * size
    for devices, free, wanted in ((0, 0, False), (1, 4 * size + 1, False), (1, 4 * size, True), (2, 1 << 40, True)):
        machine(monkeypatch, devices, free)
        assert placement.needs_several(config, "auto") is wanted


def test_without_accelerate_a_model_that_fits_lies_on_one_device(monkeypatch):
    def missing():
        raise MissingExtraError("accelerate", "devices")

    monkeypatch.setattr(placement, "require_accelerate", missing)
    machine(monkeypatch, 2, 1 << 40)
    assert placement.needs_several(LlamaConfig(**CONFIGS["llama"]), "auto") is False
    machine(monkeypatch, 2, 1)
    with pytest.raises(MissingExtraError, match=r"headwise\[devices\]"):
        placement.needs_several(LlamaConfig(**CONFIGS["llama"]), "auto")
