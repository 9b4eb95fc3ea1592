"""Rotary tables that depend on the text's length: read in several passes, a text gives what it gives in one."""

import pytest
import torch

from headwise.attention import observe
from headwise.attention.plan import attached
from headwise.caches.controls import Full
from headwise.caches.kept_cache import compress
from headwise.caches.shared import full_cache
from headwise.heads import HeadwiseError
from headwise.models.forward import forward, table_of
from headwise.prompts.prompt import Span
from headwise.runtime.passages import PassageCache, Suffix
from headwise.runtime.runner import leaves, prefill
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

SWITCH = 64
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 2.0,
    "original_max_position_embeddings": SWITCH,
}  # fmt: skip
EXACT = {"atol": 2e-5, "rtol": 1e-4}


def make(kind):
    if kind == "longrope":
        return tiny_model(
            "phi3", rope_parameters=dict(LONGROPE), original_max_position_embeddings=SWITCH, max_position_embeddings=512
        )
    if kind == "dynamic":
        return tiny_model(
            "llama", max_position_embeddings=SWITCH, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        )
    if kind == "by layer":
        full = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        return tiny_model(
            "gemma3_text", max_position_embeddings=SWITCH,
            rope_parameters={"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        )  # fmt: skip
    return tiny_model("llama")


KINDS = ("longrope", "dynamic", "by layer", "fixed")
DEPENDENT = KINDS[:3]


def text(tokens, seed=0):
    return torch.randint(3, 96, (1, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain(kind, ids):
    """Logits of one pass of a model that has read nothing before."""
    return make(kind)(ids, use_cache=False).logits


def state(hf):
    return {name: value.clone() for name, value in hf.named_buffers()}, [
        {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)} for module in hf.modules()
    ]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [50, 64, 65, 110])
def test_a_prefill_in_chunks_is_one_plain_pass(kind, tokens):
    hf, ids = make(kind), text(tokens)
    expected = plain(kind, ids)[:, -1]
    for chunk in (None, 20, 32):
        with compress(hf, Full()) as cache:
            torch.testing.assert_close(cache.prefill(ids, chunk=chunk), expected, **EXACT)
    buffers, values = state(make(kind))
    after, others = state(hf)
    assert all(torch.equal(after[name], buffers[name]) for name in buffers)
    assert values == others


@torch.no_grad()
@pytest.mark.parametrize("kind", DEPENDENT)
def test_the_case_is_one(kind):
    """Without our care two passes give something else."""
    hf, ids = make(kind), text(110)
    out = hf(ids[:, :50], use_cache=True)
    late = hf(ids[:, 50:], **with_cache(out.past_key_values)).logits[:, -1]
    assert (late - plain(kind, ids)[:, -1]).abs().max() > 1e-2


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [30, 50, 64, 90])
def test_passages_and_queries_are_one_plain_pass(kind, length, monkeypatch):
    passages = text(length)
    suffixes = [Suffix(tuple(text(n, n)[0].tolist()), Span(0, n)) for n in (20, 10, 20)]
    monkeypatch.setattr("headwise.runtime.passages.check_positions", lambda *_: None)
    hf = make(kind)
    found = PassageCache(hf, passages[0].tolist(), None).columns(suffixes)
    for row, suffix in enumerate(suffixes):
        twin = make(kind)
        spans = [(i, i + 1) for i in range(length)]
        with observe(twin, rows=len(suffix.ids), spans=spans) as seen:
            twin(torch.cat([passages, torch.tensor([suffix.ids])], dim=1), use_cache=False)
        for layer, own in found.items():
            torch.testing.assert_close(own[row], seen.by_layer[layer].mass[0].mean(dim=1), **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(40, 50), (80, 90), (80, 80), (60, 70)])
def test_prompts_of_the_runner_are_plain_passes_or_refused(kind, lengths):
    start = text(30, 5)[0].tolist()
    prompts = [start + text(n - 30, n + i)[0].tolist() for i, n in enumerate(lengths)]
    hf = make(kind)
    with attached(hf):
        for leaf in leaves(hf, prompts):
            out = forward(hf, torch.tensor([leaf.rest]), leaf.past).logits
            torch.testing.assert_close(out[:, -1], plain(kind, torch.tensor([prompts[leaf.index]]))[:, -1], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("kind", DEPENDENT)
def test_what_would_mix_two_tables_is_refused(kind):
    hf, ids = make(kind), text(70)
    cache = full_cache(hf)
    with attached(hf):
        prefill(hf, cache, ids[0, :60].tolist())
        with pytest.raises(
            HeadwiseError, match=r"depends on the text's length .* 70 tokens need another one than the 60 in the cache"
        ):
            forward(hf, ids[:, 60:], cache)
        forward(hf, ids[:, 60:64], cache)  # still the table of short texts
    with compress(hf, Full()) as cache:
        cache.prefill(ids[:, :64])
        with pytest.raises(HeadwiseError, match="read the text in one pass, or keep it below 65 tokens"):
            forward(hf, ids[:, 64:65], cache)


def test_other_models_have_one_table():
    assert table_of(make("fixed"), 10) is table_of(make("fixed"), 10_000) is None
    hf = make("longrope")
    assert [table_of(hf, n) for n in (1, 64, 65, 400)] == [0, 0, 65, 65]
    assert [table_of(make("dynamic"), n) for n in (1, 64, 65, 400)] == [0, 0, 65, 400]


@torch.no_grad()
@pytest.mark.parametrize("kind", DEPENDENT)
def test_a_longer_text_before_changes_nothing(kind):
    hf, ids = make(kind), text(80)
    hf(text(150), use_cache=False)
    with compress(hf, Full()) as cache:
        torch.testing.assert_close(cache.prefill(ids), plain(kind, ids)[:, -1], **EXACT)
