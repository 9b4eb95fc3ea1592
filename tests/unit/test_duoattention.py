"""DuoAttention and ZigzagAttention as compressors: exact where nothing may be lost, the right positions held, a planted head kept or dropped."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from headwise.attention.plan import attached
from headwise.caches.gated import gated
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.heads import HeadScores, HeadwiseError, load_heads
from headwise.methods.duo.gates import gate_scores
from headwise.methods.duo.options import Gates
from headwise.methods.duo.press import DuoAttention
from headwise.methods.duo.prompts import ASK, STATE, VaultOptions, vault_texts
from headwise.methods.zigzag.press import ZigzagAttention
from headwise.models.model import Model, as_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise_lab.microworld.names import words
from tests.helpers import with_cache

FILE = Path(__file__).parents[1] / "data/published-head-scores/duo-attention/Mistral-7B-Instruct-v0.2/full_attention_heads.tsv"
PREFILLS = ("dense", "chunked", "windowed")
LENGTH = 40
GATES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4], [0.6, 0.7]])  # [layers, KV heads] of the tiny models
EXACT = {"atol": 1e-6, "rtol": 1e-6}


def scores(gates=GATES, each=4, tables=None, **provenance):
    return HeadScores(np.repeat(gates, each, axis=1), "gate", provenance=provenance, tables=tables or {})


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def ids():
    return torch.randint(2, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, ids, cache):
    """Of a prompt, a block of new tokens and single tokens."""
    stops = [0, 22, 36, *range(37, ids.shape[1] + 1)]
    parts = [model(input_ids=ids[:, a:b], **with_cache(cache), use_cache=True).logits for a, b in pairwise(stops)]
    return torch.cat(parts, dim=1)


def plain(model, ids):
    with attached(model):
        return logits(model, ids, DynamicCache(config=model.config))


def compressed(model, ids, method):
    with method(model) as cache:
        return logits(model, ids, cache)


def methods(keep, **options):
    return [
        DuoAttention(scores(), keep, **options),
        *(ZigzagAttention(scores(), keep, rule=rule, **options) for rule in ("Z1", "Z2")),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("prefill", PREFILLS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_text_inside_the_window_loses_nothing(family, ids, prefill):
    model = tiny_model(family)
    expected = plain(model, ids)
    for method in methods(0.5, sinks=8, recent=LENGTH - 8, prefill=prefill):
        torch.testing.assert_close(compressed(model, ids, method), expected, **EXACT)
    for method in methods(0.5, sinks=8, recent=LENGTH - 12, prefill=prefill):  # the test can tell
        assert (compressed(model, ids, method) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("prefill", PREFILLS)
def test_keeping_all_loses_nothing(model, ids, prefill):
    expected = plain(model, ids)
    for method in methods(1, sinks=1, recent=2, prefill=prefill):
        torch.testing.assert_close(compressed(model, ids, method), expected, **EXACT)


def held(model, ids, method, **options):
    with method(model) as cache, torch.no_grad():
        cache.prefill(ids, **options)
        model(input_ids=ids[:, :1], **with_cache(cache))
        return {layer: [own.tolist() for own in rows] for layer, rows in cache.held_positions().items()}


@pytest.mark.parametrize(
    ("prefill", "chunk"), [("dense", None), ("dense", 9), ("chunked", None), ("chunked", 9), ("windowed", 9)]
)
def test_heads_hold_what_their_type_keeps(model, ids, prefill, chunk):
    everything, window = list(range(LENGTH + 1)), [0, 1, 2, *range(LENGTH - 5, LENGTH + 1)]
    kept = [[True, False], [False, True], [False, False], [True, True]]
    found = held(model, ids, DuoAttention(scores(), 0.5, 3, 6, prefill), chunk=chunk)
    assert found == {layer: [everything if own else window for own in row] for layer, row in enumerate(kept)}
    assert held(model, ids, DuoAttention(np.array(kept), 0.1, 3, 6, prefill), chunk=chunk) == found
    found = held(model, ids, ZigzagAttention(scores(), 0.5, 3, 6, prefill, rule="Z1"), chunk=chunk)
    assert found == {layer: [everything if layer in (0, 3) else window] * 2 for layer in range(4)}
    assert held(model, ids, ZigzagAttention([3, 0], sinks=3, recent=6, prefill=prefill), chunk=chunk) == found


def test_rules_choose_different_layers(model):
    gates = np.array([[1.0, 0.0], [0.6, 0.6], [0.95, 0.1], [0.2, 0.2]])  # the two highest heads stand in layers 0 and 2
    wrapped = as_model(model)
    chosen = {rule: ZigzagAttention(scores(gates), 0.25, rule=rule).describe(wrapped) for rule in ("Z1", "Z2")}
    assert {rule: told["retrieval_layers"] for rule, told in chosen.items()} == {"Z1": [1], "Z2": [2]}
    assert {rule: told["ties_decided"] for rule, told in chosen.items()} == {"Z1": 0, "Z2": 1}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_windowed_prefill_is_what_gates_are_found_with(family, ids):
    """The same pattern as gates of 0 and 1, in attention that shares no code with the cache."""
    model = tiny_model(family)
    pattern = GATES > 0.5
    with torch.no_grad():
        with gated(model, torch.from_numpy(pattern).float(), Window(3, 6)):
            expected = model(input_ids=ids, use_cache=False).logits
        with DuoAttention(pattern, sinks=3, recent=6, prefill="windowed")(model) as cache:
            found = model(input_ids=ids, **with_cache(cache)).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_only_the_prefill_modes_differ(model, ids):
    found = {}
    for prefill in PREFILLS:
        with DuoAttention(scores(), 0.25, 3, 6, prefill)(model) as cache:
            found[prefill] = cache.prefill(ids, chunk=10)
    with attached(model), torch.no_grad():
        torch.testing.assert_close(found["dense"], model(input_ids=ids).logits[:, -1], atol=2e-5, rtol=1e-4)
    assert (found["dense"] - found["chunked"]).abs().max() > 1e-3
    assert (found["chunked"] - found["windowed"]).abs().max() > 1e-3


def test_both_ways_to_open_the_block_are_one(model, ids):
    method = DuoAttention(scores(), 0.5, 3, 6, "chunked")
    with compress(model, method) as cache:
        assert torch.equal(logits(model, ids, cache), compressed(model, ids, method))


def test_generation_in_a_block_leaves_the_model_as_it_was(model, ids):
    with torch.no_grad():
        before = model(input_ids=ids).logits
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with DuoAttention(scores(), 0.5, 8, 60)(model) as cache:
        found = model.generate(ids, **with_cache(cache), **options)
    assert torch.equal(found, model.generate(ids, **options))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


# ---- where patterns come from


def test_released_gates_are_read():
    """A table of 32 layers x 8 KV heads, for a model with two query heads per KV head."""
    shape = {"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 8}
    model = as_model(tiny_model("llama", **shape))
    gates = load_heads(FILE)
    told = DuoAttention(gates, 0.25).describe(model)
    assert told["ties_decided"] == 64
    assert sum(map(len, told["retrieval_heads"].values())) == 64
    repeated = HeadScores(np.repeat(gates.values, 2, axis=1), "gate")
    assert DuoAttention(repeated, 0.25).describe(model) == told
    assert len(ZigzagAttention(gates, 0.25).describe(model)["retrieval_layers"]) == 8
    copy = np.random.default_rng(0).random((32, 16))  # other scores may decide between the 110 gates of exactly 1
    decided = DuoAttention(gates, 0.25, ties=HeadScores(copy, "copy")).pattern(model)
    means = np.where(gates.values == 1, copy.reshape(32, 8, 2).mean(axis=2), -1)
    assert decided.kept.sum() == 64
    assert means[decided.kept].min() > means[~decided.kept].max()


def test_gates_averaged_over_training_decide_ties(model):
    gates = np.array([[1.0, 1.0], [1.0, 1.0], [0.2, 0.2], [0.2, 0.2]])
    averaged = [[0.5, 0.6], [0.9, 0.4], [0.99, 0.99], [0.99, 0.99]]
    told = DuoAttention(scores(gates, tables={"mean_gates": averaged}), 0.25).describe(as_model(model))
    assert told["retrieval_heads"] == {"0": [1], "1": [0], "2": [], "3": []}
    assert told["ties_decided"] == 2


def test_only_layers_with_full_attention_are_chosen():
    model = as_model(tiny_model("gemma2"))  # layers 1 and 3
    gates = np.where(np.arange(4)[:, None] % 2, GATES, np.nan)
    told = DuoAttention(scores(gates), 0.5).describe(model)
    assert told["retrieval_heads"] == {"1": [1], "3": [1]}
    assert told["share_kept"] == 0.5
    assert ZigzagAttention(scores(gates), 0.5).describe(model)["retrieval_layers"] == [3]
    with pytest.raises(HeadwiseError, match=r"layer 2 of .* is no layer with full attention; those are \[1, 3\]"):
        ZigzagAttention([2, 3]).check(model)
    with pytest.raises(HeadwiseError, match="no layer with full attention"), DuoAttention(scores())(tiny_model("mistral")):
        pass


def test_a_result_names_prefill_and_pattern(model):
    wrapped = as_model(model)
    told = DuoAttention(scores(options={"sinks": 4}), 0.5, 3, 6, "chunked").describe(wrapped)
    assert json.loads(json.dumps(told)) == told
    assert told == {
        "method": "duoattention",
        "prefill": "chunked",
        "sinks": 3,
        "recent": 6,
        "keep": 0.5,
        "share_kept": 0.5,
        "retrieval_heads": {"0": [0], "1": [1], "2": [], "3": [0, 1]},
        "ties_decided": 0,
        "cut": 0.4,
        "high_cut": False,
        "gates_found_with": {"sinks": 4},
    }
    told = ZigzagAttention(scores(), 0.25, 3, 6, "windowed", rule="Z2").describe(wrapped)
    assert json.loads(json.dumps(told)) == told
    assert (told["prefill"], told["rule"], told["retrieval_layers"], told["share_kept"]) == ("windowed", "Z2", [0], 0.25)
    assert DuoAttention(scores(1 - GATES / 100), 0.5).describe(wrapped)["high_cut"]
    told = DuoAttention(GATES > 0.65).describe(wrapped)
    assert (told["keep"], told["cut"], told["share_kept"]) == (None, None, 0.375)


@pytest.mark.parametrize("method", [DuoAttention, ZigzagAttention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, r"must lie in \(0, 1\]; got 0"),
        ({"keep": 1.5}, r"must lie in \(0, 1\]; got 1.5"),
        ({"sinks": 0}, "at least 1 token each; got 0 and 256"),
        ({"recent": 0}, "at least 1 token each; got 64 and 0"),
        ({"prefill": "lazy"}, "unknown prefill 'lazy'; use dense, chunked, windowed"),
    ],
)
def test_impossible_options_are_refused(method, options, message):
    with pytest.raises(HeadwiseError, match=message):
        method(scores(), **options)


def test_impossible_heads_and_rules_are_refused():
    for heads in ([1, 2], GATES, np.ones(3, dtype=bool)):
        with pytest.raises(HeadwiseError, match="heads must be gates, or a table"):
            DuoAttention(heads)
    with pytest.raises(HeadwiseError, match="rule 'Z5' is none of Z1 to Z4; give the layers that Z5 has found"):
        ZigzagAttention(scores(), rule="Z5")


@pytest.mark.parametrize("method", [DuoAttention, ZigzagAttention])
@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (scores(GATES[:3]), "gates of 3 layers x 8 heads do not belong to llama, which has 4 layers x 8 query heads"),
        (scores(each=3), "gates of 4 layers x 6 heads do not belong"),
        (HeadScores(np.random.default_rng(0).random((4, 8)), "copy"), "these copy scores differ between query heads"),
        (scores(np.ones((4, 2))), "that is no ranking"),
        (scores(np.where(GATES > 0.8, np.nan, GATES)), "finite gate"),
    ],
)
def test_gates_of_another_model_are_refused(model, method, heads, message):
    with pytest.raises(HeadwiseError, match=message), method(heads)(model):
        pass
    assert model.config._attn_implementation != "headwise"


def test_patterns_and_ties_of_another_model_are_refused(model):
    with pytest.raises(HeadwiseError, match=r"a pattern of 2 layers x 8 KV heads for .*, which has 4 x 2"):
        DuoAttention(np.ones((2, 8), dtype=bool)).check(as_model(model))
    with pytest.raises(HeadwiseError, match="scores that decide ties"):
        DuoAttention(scores(), ties=HeadScores(np.ones((4, 2)), "copy")).check(as_model(model))
    with pytest.raises(HeadwiseError, match=r"layer 4 of .* is no layer with full attention"):
        ZigzagAttention([4]).check(as_model(model))


# ---- from finding to using


@pytest.mark.slow
def test_what_is_found_on_some_words_serves_others():
    listed = " ".join(words("pass", "train") + words("pass", "test"))
    wording = [f"{STATE} {ASK} {listed}.".format(number=number) for number in (1, 2)]
    hf, tokenizer = planted_copier(2, 4, 1, 2, kv_heads=4, texts=wording)
    model, encoder = Model(hf, tokenizer), PieceEncoder(tokenizer)
    haystack = Haystack(planted_task().texts, encoder)
    options = {"lengths": (150, 200), "keys": 2, "words": 4}
    gates = gate_scores(
        model,
        vault_texts(haystack, encoder, VaultOptions(**options), 3),
        Gates(steps=20, rate=0.15, sinks=4, recent=16),
    )

    @torch.no_grad()
    def share_right(method):
        hits = []
        for text in vault_texts(haystack, encoder, VaultOptions(**options, split="test"), 3):
            row = torch.tensor([text.ids])
            with method(hf) as cache:
                said = hf(input_ids=row, **with_cache(cache)).logits[0, text.places].argmax(dim=-1)
            hits += (said == row[0, 1:][text.places]).tolist()
        return sum(hits) / len(hits)

    small = {"sinks": 4, "recent": 16, "prefill": "windowed"}
    pattern = np.zeros((2, 4), dtype=bool)
    pattern[1, 2] = True
    assert share_right(DuoAttention(gates, 1 / 8, **small)) > 0.8  # one of eight heads
    assert share_right(DuoAttention(~pattern, **small)) < 0.2  # all others
    assert share_right(ZigzagAttention(gates, 0.5, **small)) > 0.8
    assert share_right(ZigzagAttention([0], **small)) < 0.2
