"""Column sums, passage values and query rules against slow loops, in every family."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwise.attention.depth import run_to_layer
from headwise.heads import HeadSet, HeadwiseError
from headwise.maths.columns import attention_columns, pool_passages
from headwise.methods.query.formula import RULES, query_score
from headwise.models.model import as_model
from headwise.prompts.prompt import Span
from headwise.runtime.passages import PassageCache, Suffix
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.reference import query as slow

RNG = np.random.default_rng(0)
PREFIX = tuple(int(i) for i in RNG.integers(2, 96, 40))
SUFFIXES = [
    Suffix(tuple(int(i) for i in RNG.integers(2, 96, n)), Span(*rows)) for n, rows in ((7, (2, 5)), (4, (0, 4)), (1, (0, 1)))
]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_columns_are_those_of_plain_eager_passes(family):
    model = tiny_model(family)
    cache = PassageCache(model, PREFIX, None)
    found = cache.columns(SUFFIXES)
    assert set(found) == set(as_model(model).modules)
    for i, suffix in enumerate(SUFFIXES):
        wanted = slow.attention_to_prefix(model, PREFIX, suffix.ids, tuple(suffix.rows))
        for layer, sums in found.items():
            torch.testing.assert_close(sums[i].double(), torch.stack(wanted[layer]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma2", "gpt_oss"])
def test_chosen_heads_are_rows_of_all_and_the_model_is_as_before(family, monkeypatch):
    model = tiny_model(family)
    layers = sorted(as_model(model).modules)
    heads = HeadSet.of([(layers[0], 5), (layers[1], 0), (layers[1], 7)], as_model(model).heads.shape)
    ids = torch.tensor([PREFIX])
    before = model(ids).logits
    every = PassageCache(model, PREFIX, None).columns(SUFFIXES)
    monkeypatch.setattr("headwise.runtime.passages.CHUNK", 16)
    monkeypatch.setattr("headwise.runtime.passages.BATCH_TOKENS", 8)
    few = PassageCache(model, PREFIX, heads)
    assert few.deepest == layers[1]
    some = few.columns(SUFFIXES)
    torch.testing.assert_close(some[layers[0]][:, 0], every[layers[0]][:, 5], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(some[layers[1]], every[layers[1]][:, [0, 7]], atol=2e-5, rtol=1e-4)
    assert torch.equal(model(ids).logits, before)


def test_nothing_above_the_deepest_head_is_run():
    model = tiny_model("llama")
    ran = []
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    run_to_layer(model, 2, torch.tensor([PREFIX]))
    assert ran == [0, 1]
    with pytest.raises(HeadwiseError, match="no attention to stop at"):
        run_to_layer(model, 9, torch.tensor([PREFIX]))


def test_too_long_a_text_is_refused():
    model = tiny_model("llama")
    with pytest.raises(HeadwiseError, match="need 257 tokens, but the model has 256 positions"):
        PassageCache(model, PREFIX * 6 + PREFIX[:16], None)
    with pytest.raises(HeadwiseError, match="need 257 tokens"):
        PassageCache(model, PREFIX * 6, None).columns([Suffix(PREFIX[:17], Span(0, 17))])


@pytest.mark.parametrize("block", [3, 64])
def test_blocks_do_not_change_the_sums(block):
    torch.manual_seed(0)
    query, keys = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 20, 8)
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    found = attention_columns(query, [keys], scaling=0.3, weights=weights, stop=15, block=block)
    logits = torch.einsum("bhrd,bhsd->bhrs", query, keys.repeat_interleave(2, dim=1)) * 0.3
    hidden = torch.arange(20) > torch.arange(17, 20).unsqueeze(-1)
    shares = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(found, torch.einsum("br,bhrs->bhs", weights, shares)[..., :15])


SPANS = [(0, 7), (7, 8), (8, 15), (20, 40)]


def test_passages_are_pooled_as_released():
    torch.manual_seed(1)
    values = torch.randn(3, 40)
    found = pool_passages(values, SPANS, trim=2.0, strict=True)
    wanted = [[slow.official_passage(row.tolist(), *span) for span in SPANS] for row in values]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert (found[:, 1] == 0).all()  # one token


def test_our_trimming_keeps_single_tokens_and_normalising_divides():
    values = torch.arange(40.0)
    assert pool_passages(values, SPANS, trim=2.0)[1] == 7
    assert pool_passages(torch.ones(40), SPANS, trim=2.0).tolist() == [7, 1, 7, 20]
    assert pool_passages(torch.ones(40), SPANS, normalize="mean").tolist() == [1, 1, 1, 1]
    assert pool_passages(torch.ones(40), SPANS, normalize="sqrt")[3] == pytest.approx(20**0.5)
    with pytest.raises(HeadwiseError, match="unknown normalize"):
        pool_passages(values, SPANS, normalize="max")


@given(st.lists(st.integers(-3, 5), min_size=2, max_size=14), st.data())
def test_rules_are_the_slow_loops(numbers, data):
    gold = np.array(data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers))))
    if not gold.any():
        gold[0] = True
    values = np.array(numbers, dtype=float) / 4
    table = values[None, None]
    assert query_score(table, gold, "ndcg")[0, 0] == pytest.approx(slow.ndcg(values, gold))
    assert query_score(table, gold, "mrr")[0, 0] == pytest.approx(slow.mrr(values, gold))
    assert query_score(table, gold, "contrastive", 0.3)[0, 0] == pytest.approx(slow.contrastive(values, gold, 0.3))
    assert query_score(table, gold, "mass")[0, 0] == pytest.approx(values[gold].sum())


def test_rules_refuse_what_they_do_not_know():
    values, gold = np.zeros((1, 1, 2)), np.array([True, False])
    with pytest.raises(HeadwiseError, match="unknown rule"):
        query_score(values, gold, "best")
    with pytest.raises(HeadwiseError, match="temperature"):
        query_score(values, gold, "contrastive", 0)
    assert all(np.isfinite(query_score(values, gold, rule)).all() for rule in RULES)
