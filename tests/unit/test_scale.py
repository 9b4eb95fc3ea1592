"""Outputs of heads times a factor: its two ends, linearity, batch rows, scopes, and what is refused."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise import HeadSet, HeadwiseError, ablate, scale
from headwise.attention.plan import attached
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

HEADS = [(0, 1), (0, 6), (1, 3), (3, 0)]
TINY = tiny_model("llama")


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen3_next"])
def tiny(request):
    return tiny_model(request.param)


@pytest.fixture
def heads(tiny):
    layers = list(as_model(tiny).modules)
    return [(layers[0], 1), (layers[0], 6), (layers[-1], 3)]


def text(tokens=14, seed=0, rows=1):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


def by_hand(model, heads, factor):
    """A copy whose output projections take the heads' outputs times the factor."""
    twin = copy.deepcopy(model)
    found = as_model(twin)
    for layer, head in heads:
        width = found.heads.head_dim
        with torch.no_grad():
            found.part("output", layer).weight[:, head * width : (head + 1) * width] *= factor
    return twin


@pytest.mark.parametrize("factor", [0, 0.3, 1, 2.5])
def test_scaled_outputs_equal_scaled_weights(tiny, heads, factor):
    with scale(tiny, heads, factor):
        got = logits(tiny, text())
    torch.testing.assert_close(got, logits(by_hand(tiny, heads, factor), text()), atol=1e-5, rtol=1e-5)
    assert factor == 1 or (got - logits(tiny, text())).abs().max() > 1e-3


@settings(max_examples=10)
@given(st.integers(0, 99), st.sets(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=8))
def test_factor_0_is_zero_and_factor_1_changes_no_bit(seed, chosen):
    model, ids = TINY, text(seed=seed)
    with attached(model):
        before = logits(model, ids)
    with scale(model, sorted(chosen), 1.0):
        assert torch.equal(logits(model, ids), before)
    with scale(model, sorted(chosen), 0.0):
        got = logits(model, ids)
    with ablate(model, sorted(chosen), "zero"):
        assert torch.equal(got, logits(model, ids))


def test_each_batch_row_has_its_heads_and_its_factor():
    ids, own = text().expand(4, -1), [HeadSet.of(h, (4, 8)) for h in (HEADS, [], HEADS[:1], HEADS)]
    factors = [0.5, 3.0, 0.0, 1.0]
    with scale(TINY, own, factors):
        got = logits(TINY, ids)
    for row, (chosen, factor) in enumerate(zip(own, factors, strict=True)):
        with scale(TINY, chosen, factor):
            torch.testing.assert_close(got[row], logits(TINY, ids[:1])[0], atol=1e-5, rtol=1e-5)
    with scale(TINY, own, 0.5):
        same = logits(TINY, ids)
    torch.testing.assert_close(same[0], got[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(same[0], same[3])


@torch.no_grad()
def test_the_scope_counts_positions_also_over_a_cache():
    ids = text()
    with attached(TINY):
        before = logits(TINY, ids)
    with scale(TINY, HEADS, 2.0, scope="answer", answer_from=9):
        whole = logits(TINY, ids)
        first = TINY(ids[:, :7], use_cache=True)
        rest = TINY(ids[:, 7:], **with_cache(first.past_key_values), use_cache=True)
    assert torch.equal(whole[:, :9], before[:, :9])
    assert (whole[:, 9:] - before[:, 9:]).abs().amax(dim=-1).min() > 1e-4
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole, atol=1e-5, rtol=1e-4)


def test_a_factor_keeps_its_digits_in_half_precision():
    half = copy.deepcopy(TINY).to(torch.bfloat16)
    seen = []

    class Tap:
        def look(self, call):
            seen.append(call.output)

    with attached(half) as plan, plan.running(Tap()):
        logits(half, text())
        with scale(half, [(0, 1)], 1.005):  # which bfloat16 would round to 1.0078
            logits(half, text())
    plain, scaled = seen[0][0, :, 1], seen[4][0, :, 1]
    assert torch.equal(scaled, (plain.float() * 1.005).bfloat16())
    assert scaled.dtype == torch.bfloat16
    assert not torch.equal(scaled, plain * torch.tensor(1.005).bfloat16())


def test_the_model_is_as_before_also_after_an_error(tiny, heads):
    before, implementation = logits(tiny, text()), tiny.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), scale(tiny, heads, 3.0):
        raise RuntimeError(str(logits(tiny, text()).shape) + "inside")
    assert tiny.config._attn_implementation == implementation
    assert torch.equal(logits(tiny, text()), before)


@pytest.mark.parametrize("factor", [-0.5, math.nan, math.inf, "2", None, True, 10**400, 1e39, [1.0, math.nan]])
def test_a_factor_that_is_none_is_refused(factor):
    own = [HeadSet.of(HEADS, (4, 8))] * 2
    with pytest.raises(HeadwiseError, match="must be a finite number from 0 on; got") as caught, scale(TINY, own, factor):
        pass
    assert "\n" not in str(caught.value)
    assert TINY.config._attn_implementation != "headwise"


@pytest.mark.parametrize(
    ("heads", "factor", "options", "message"),
    [
        ([HeadSet.of(HEADS, (4, 8))] * 2, [1.0, 2.0, 3.0], {}, "3 factors for 2 sets of heads"),
        (HEADS, [1.0, 2.0], {}, "2 factors for one set of heads"),
        (HEADS, [], {}, "0 factors for one set of heads"),
        ([(0, 8)], 2.0, {}, "L0H8"),
        (HEADS, 2.0, {"scope": "rest"}, "unknown scope 'rest'; use all, answer"),
    ],
)
def test_wrong_input_is_refused(heads, factor, options, message):
    with pytest.raises(HeadwiseError, match=message), scale(TINY, heads, factor, **options):
        pass


def test_another_number_of_rows_is_refused():
    own = [HeadSet.of(HEADS, (4, 8))] * 3
    with (
        scale(TINY, own, 2.0),
        pytest.raises(HeadwiseError, match="3 sets of heads for a batch of 2 rows; give one, or one per row"),
    ):
        logits(TINY, text(rows=2))
    with ablate(TINY, own), pytest.raises(HeadwiseError, match="3 sets of heads for a batch of 2 rows; give one, or one per row"):
        logits(TINY, text(rows=2))


def test_numbers_of_numpy_are_numbers():
    with scale(TINY, HEADS, 2.0):
        right = logits(TINY, text())
    for factor in (np.float64(2), np.float32(2), np.int64(2), 2, (2.0,)):
        with scale(TINY, HEADS, factor):
            assert torch.equal(logits(TINY, text()), right)
