"""For every family: function vectors, patches, forced copying, hidden keys and scaled heads, against written-out attention and over caches."""

import pytest
import torch

from headwise.attention import HeadVectors, force_copy, hide, insert, patch, record, scale
from headwise.attention.plan import attached
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache
from tests.reference import interventions as slow
from tests.reference.hide import logits_without

LENGTH = 14
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SPANS = [(8, 10), (11, 12)]  # the window of the tiny models is 8
NEEDLE = [8, 9, 11]
WAYS = {
    "two_step": {"beta": 0.5, "factor": 2.0},
    "mix": {"weight": 0.9, "temperature": 1.5},
}


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    made = tiny_model(request.param)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 1
    return made


@pytest.fixture
def ids():
    return torch.stack([2 + torch.randperm(94, generator=torch.Generator().manual_seed(seed))[:LENGTH] for seed in (1, 2)])


@pytest.fixture
def mask():
    found = torch.ones(2, LENGTH, dtype=torch.int64)
    found[0, :3] = 0
    return found


def some_heads(hf):
    model = as_model(hf)
    layers = list(model.modules)
    return HeadSet.of([(layers[0], 1), (layers[-1], 3), (layers[0], 6), (layers[-1], 0)], model.heads.shape)


def vectors_of(hf, seed=0):
    model, heads = as_model(hf), some_heads(hf)
    return HeadVectors(heads, torch.randn(len(heads), model.heads.head_dim, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def logits(model, ids, mask=None):
    return model(ids, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_inserted_vectors_equal_written_out_attention(model, ids, mask, mode):
    vectors = vectors_of(model)
    values = {(h.layer, h.head): v for h, v in zip(vectors.heads, vectors.values, strict=True)}

    def output_of(layer, row, head, place, output):
        if (layer, head) not in values or place < LENGTH - 1:
            return None
        return 1.5 * values[layer, head] if mode == "replace" else output + 1.5 * values[layer, head]

    wanted = slow.logits_with(model, ids, mask, output_of=output_of)
    with insert(model, vectors, mode, 1.5):
        got = logits(model, ids, mask)
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **CLOSE)
    before = logits(model, ids, mask)
    assert (got - before)[:, -1].abs().max() > 1e-3
    assert (got - before)[:, :-1][mask[:, :-1].bool()].abs().max() < 1e-5


@pytest.mark.parametrize("how", WAYS)
def test_forced_copying_equals_written_out_attention(model, ids, mask, how):
    heads, given = set(some_heads(model)), {"beta": 0.0, "factor": 1.0, "weight": 0.0, "temperature": 1.0} | WAYS[how]

    def weights_of(layer, row, head, place, scores, sink):
        return slow.forced(scores, sink, NEEDLE, how, **given) if (layer, head) in heads and place == LENGTH - 1 else None

    wanted = slow.logits_with(model, ids, mask, weights_of=weights_of)
    with force_copy(model, some_heads(model), SPANS, how, **WAYS[how]):
        got = logits(model, ids, mask)
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **CLOSE)
    assert (got - logits(model, ids, mask))[:, -1].abs().max() > 1e-4


def test_hidden_keys_equal_attention_without_their_columns(model, ids, mask):
    heads = some_heads(model)
    sets = [heads, heads[:1]]  # one per batch row
    wanted = logits_without(model, ids, lambda row: set(sets[row]), SPANS, mask)
    with hide(model, sets, SPANS):
        got = logits(model, ids, mask)
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **CLOSE)
    assert (got - logits(model, ids, mask))[:, -1].abs().max() > 1e-4


def test_scaled_heads_equal_written_out_attention(model, ids, mask):
    heads = set(some_heads(model))

    def output_of(layer, row, head, place, output):
        return 0.4 * output if (layer, head) in heads else None

    wanted = slow.logits_with(model, ids, mask, output_of=output_of)
    with scale(model, some_heads(model), 0.4):
        got = logits(model, ids, mask)
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **CLOSE)
    assert (got - logits(model, ids, mask))[:, -1].abs().max() > 1e-4


def test_patched_outputs_equal_written_out_attention(model, ids):
    """Outputs of the row above put into the row below and the other way round, at places that differ by row."""
    heads = some_heads(model)
    clean, there = [[3, 7, 13], [1, 2, 5]], [[4, 8, 13], [0, 6, 12]]
    with record(model, heads, clean) as seen:
        logits(model, ids.flip(0))
    outputs = seen.outputs
    put = {
        (h.layer, row, h.head, place): outputs[row, i, n]
        for n, h in enumerate(heads)
        for row in range(2)
        for i, place in enumerate(there[row])
    }
    wanted = slow.logits_with(model, ids, output_of=lambda layer, row, head, place, _: put.get((layer, row, head, place)))
    with patch(model, heads, outputs, there):
        got = logits(model, ids)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert (got - logits(model, ids)).abs().amax(dim=-1).max() > 1e-4


def test_recorded_outputs_are_those_of_each_rows_last_token(model, ids, mask):
    heads, found = some_heads(model), {}

    def output_of(layer, row, head, place, output):
        if (layer, head) in set(heads) and place == LENGTH - 1:
            found[layer, row, head] = output

    slow.logits_with(model, ids, mask, output_of=output_of)
    with record(model, heads) as seen:
        logits(model, ids, mask)
    for n, head in enumerate(heads):
        for row in range(2):
            torch.testing.assert_close(seen.outputs[row, 0, n], found[head.layer, row, head.head], **CLOSE)


def blocks(model):
    heads, vectors = some_heads(model), vectors_of(model, 3)
    return {
        "replace": lambda: insert(model, vectors, "replace", 0.7),
        "add": lambda: insert(model, vectors, "add", 0.7),
        "two_step": lambda: force_copy(model, heads, SPANS, "two_step"),
        "mix": lambda: force_copy(model, heads, SPANS, "mix"),
        "patch": lambda: patch(model, heads, vectors.values[None, None]),
        "hide": lambda: hide(model, heads, SPANS),
        "scale": lambda: scale(model, heads, 0.3),
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["replace", "add", "two_step", "mix", "patch", "hide", "scale"])
def test_generating_with_and_without_a_cache_is_the_same(model, ids, mask, kind):
    options = {
        "max_new_tokens": 5,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "attention_mask": mask,
    }
    with blocks(model)[kind]():
        with_a_cache = model.generate(ids, use_cache=True, **options)
        without = model.generate(ids, use_cache=False, **options)
    close = {"atol": 1e-4, "rtol": 1e-3} if as_model(model).is_hybrid else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(torch.stack(without.logits), torch.stack(with_a_cache.logits), **close)
    plain = model.generate(ids, use_cache=True, **options)
    assert (plain.logits[0] - with_a_cache.logits[0]).abs().max() > 1e-4


@torch.no_grad()
def test_pieces_over_a_cache_equal_one_pass(model, ids):
    """transformers' own caches drop what a sliding window cannot see."""
    heads, vectors = some_heads(model), vectors_of(model)
    with (
        insert(model, vectors, answer_from=11),
        force_copy(model, heads - vectors.heads[:2], [(8, 10)], answer_from=11),
        hide(model, [(layer, 7) for layer in as_model(model).modules], [(2, 5), (7, 9)]),
    ):
        whole = logits(model, ids)
        cache, parts = None, []
        for piece in (ids[:, :9], ids[:, 9:12], ids[:, 12:13], ids[:, 13:]):
            out = model(piece, **with_cache(cache), use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-3)


def test_the_model_is_bit_identical_afterwards(model, ids):
    before, implementation = logits(model, ids), model.config._attn_implementation
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    for block in blocks(model).values():
        with block():
            assert model.config._attn_implementation == "headwise"
            logits(model, ids)
        with pytest.raises(HeadwiseError, match="whole numbers"), block():
            patch(model, some_heads(model), None, [-logits(model, ids).abs().max().item()]).__enter__()
        assert torch.equal(logits(model, ids), before)
    assert model.config._attn_implementation == implementation
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    with attached(model) as plan:
        assert not any((plan.outputs, plan.looking, plan.beginning))
