"""What tells two models of one name and shape apart."""

import time

import pytest
import torch

from headwise.heads import HeadSet, HeadwiseError
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer


def test_equal_models_have_equal_fingerprints_and_any_change_another():
    tokenizer = character_tokenizer()
    digest = Model(tiny_model("llama"), tokenizer).fingerprint
    assert Model(tiny_model("llama"), character_tokenizer()).fingerprint == digest
    assert len(digest) == 16
    others = [
        Model(tiny_model("llama", seed=1), tokenizer),
        Model(tiny_model("llama").to(torch.bfloat16), tokenizer),
        Model(tiny_model("llama"), word_tokenizer(["a key"])),
        Model(tiny_model("llama")),
    ]
    assert len({digest, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("mode", ["zero", "uniform"])
@pytest.mark.parametrize("head", range(8))
def test_every_single_silenced_head_is_seen(mode, head):
    """64 evenly spread values of a square matrix may all lie in one column; the sum of all bits sees the others."""
    model, twin = tiny_model("llama", hidden_size=128), tiny_model("llama", hidden_size=128)
    silence_in_weights(twin, HeadSet.of([(2, head)], (4, 8)), mode)
    assert weights_digest(model) != weights_digest(twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_one_changed_value_of_an_odd_number_is_seen(dtype):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(1, 1003, dtype=dtype), requires_grad=False)
    seen = {weights_digest(module)}
    for place in (1, 500, 1002):
        module.weight.zero_()
        module.weight[0, place] = 1
        seen.add(weights_digest(module))
    assert len(seen) == 4


def test_tokenizers_are_told_apart_by_template_and_padding_state_does_not_matter():
    one, other = character_tokenizer(), character_tokenizer()
    digest = tokenizer_digest(one)
    one(["a", "a key"], padding=True)
    assert tokenizer_digest(one) == digest
    other.chat_template = "{{ messages }}"
    assert tokenizer_digest(other) != digest


@pytest.mark.slow
def test_it_is_kept_and_fast():
    model = Model(tiny_model("llama", hidden_size=1024, intermediate_size=4096, vocab_size=8000))  # 80 million values
    start = time.perf_counter()
    first = model.fingerprint
    assert time.perf_counter() - start < 3
    start = time.perf_counter()
    assert model.fingerprint is first
    assert time.perf_counter() - start < 0.01


def test_weights_that_are_nowhere_are_refused():
    model = tiny_model("llama").to("meta")
    with pytest.raises(HeadwiseError, match=r"model.embed_tokens.weight has no values"):
        weights_digest(model)


def test_offloaded_weights_are_read_where_they_are():
    accelerate = pytest.importorskip("accelerate")
    digest = weights_digest(tiny_model("llama"))
    assert weights_digest(accelerate.cpu_offload(tiny_model("llama"), execution_device="cpu")) == digest
