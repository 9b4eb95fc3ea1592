"""For every family: rows of chosen heads step by step, after the fact, and against the family's own written-out attention."""

import pytest
import torch

from headwise.attention.token_rows import token_rows
from headwise.caches.shared import full_cache
from headwise.heads import HeadSet
from headwise.models.forward import forward
from headwise.models.lens import HeadLens
from headwise.models.model import Model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer

PROMPT, WEIGHTS = 20, (0.3, -0.2, 1.0, 0.5)


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return Model(tiny_model(request.param), character_tokenizer())


@pytest.fixture
def heads(model):
    first, last = min(model.modules), max(model.modules)
    return HeadSet.of([(last, 5), (first, 1), (first, 0), (last, 2)], model.heads.shape)


@pytest.fixture
def ids():
    return 2 + torch.randperm(94, generator=torch.Generator().manual_seed(1))[None, :30]


def rows_of(model, heads, ids, steps):
    cache = full_cache(model.hf)
    with token_rows(model, heads, WEIGHTS, PROMPT) as rows, torch.no_grad():
        for start, stop in steps:
            forward(model.hf, ids[:, start:stop], cache)
        last = rows.newest(ids[:, -1])
    return {place: row for place, (_, row) in rows.rows.items()} | {ids.shape[1] - 2: last}


def test_step_by_step_is_as_after_the_fact(model, heads, ids):
    whole = rows_of(model, heads, ids, [(0, 29)])
    steps = rows_of(model, heads, ids, [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, 29))])
    chunks = rows_of(model, heads, ids, [(0, 7), (7, 16), (16, 24), (24, 29)])
    assert list(whole) == list(steps) == list(chunks) == list(range(PROMPT - 1, 29))
    for other in (steps, chunks):
        for place, row in whole.items():
            torch.testing.assert_close(other[place].features, row.features, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(other[place].scores, row.scores, atol=1e-5, rtol=1e-4)


def test_looks_are_the_family_s_own_attention(model, heads, ids):
    with token_rows(model, heads, WEIGHTS, 30) as rows, torch.no_grad():
        model.hf(ids, use_cache=False)
        looks = rows.looks()[0]
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        seen = model.hf(ids, output_attentions=True, use_cache=False).attentions
    model.hf.set_attn_implementation(before)
    layers = [layer for layer in range(model.heads.shape[0]) if layer in model.modules]
    for look, head in zip(looks, heads, strict=True):
        own = seen[layers.index(head.layer) if len(seen) == len(layers) else head.layer]
        torch.testing.assert_close(look, own[0, head.head, -1, :30].float(), atol=1e-5, rtol=1e-4)


def test_vectors_of_all_heads_sum_to_what_the_layer_writes(model):
    layer = max(model.modules)
    lens = HeadLens(model, {layer: list(range(model.heads.shape[1]))})
    given = torch.randn(2, 3, model.heads.shape[1] * model.heads.head_dim, generator=torch.Generator().manual_seed(0))
    projection = model.part("output", layer)
    with torch.no_grad():
        wanted = projection(given) - projection(torch.zeros_like(given))
        columns = lens._columns[layer]
        parts = torch.einsum("btnd,ndw->btw", given.unflatten(-1, (-1, model.heads.head_dim)), columns)
    torch.testing.assert_close(parts, wanted, atol=1e-5, rtol=1e-4)


def test_scores_are_those_of_the_model_s_readout(model):
    layer = max(model.modules)
    lens = HeadLens(model, {layer: [0, 3]})
    outputs = torch.randn(1, 4, 2, model.heads.head_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = lens.vectors(layer, outputs)
        tokens = torch.tensor([[5, 6, 7, 8]])
        got = lens.scores(vectors, tokens)
        every = model.readout.projection(vectors) * model.readout.scale
    wanted = torch.stack([every[0, i, :, token] for i, token in enumerate(tokens[0].tolist())])[None]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
