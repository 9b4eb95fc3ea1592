"""Properties of budgets: whole numbers that add up, inside their limits, in the order of their weights (card 6.7 of CompressKV)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.caches.allocation import ByLayer
from headwise.heads import HeadwiseError
from headwise.maths.budgets import error_shares, fitted
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.reference.semantic import slow_budgets

many = settings(max_examples=80)
weights = st.one_of(st.just(0.0), st.floats(1e-3, 1e4))


@st.composite
def wishes(draw):
    """(wanted, total, least, most); the total may lie outside of what the limits allow."""
    wanted = draw(st.lists(weights, min_size=1, max_size=40))
    least = draw(st.integers(0, 50))
    most = least + draw(st.integers(0, 400))
    return wanted, draw(st.integers(0, len(wanted) * (most + 5))), least, most


@many
@given(wishes())
def test_counts_add_up_inside_their_limits(case):
    wanted, total, least, most = case
    counts = fitted(wanted, total, least, most)
    assert len(counts) == len(wanted)
    assert all(isinstance(count, int) and least <= count <= most for count in counts)
    assert sum(counts) == min(max(total, least * len(wanted)), most * len(wanted))


@many
@given(wishes())
def test_who_wants_more_gets_no_less(case):
    """Rounding aside: equal wishes differ by at most 1, earlier ones larger."""
    wanted, *rest = case
    counts = fitted(wanted, *rest)
    for i, (mine, count) in enumerate(zip(wanted, counts, strict=True)):
        for other, theirs in zip(wanted[i + 1 :], counts[i + 1 :], strict=True):
            if mine == other:
                assert 0 <= count - theirs <= 1
            elif mine > other:
                assert count >= theirs - 1
            else:
                assert theirs >= count - 1


@many
@given(wishes())
def test_what_no_limit_touches_is_in_proportion(case):
    """Counts strictly inside the limits are the wishes times one factor, to within one."""
    wanted, *rest = case
    counts = fitted(wanted, *rest)
    free = [i for i, count in enumerate(counts) if rest[1] + 1 < count < rest[2] - 1 and wanted[i] > 0]
    for i in free:
        for j in free:
            # count = wish * factor + e with |e| <= 1 for both
            factor = (counts[j] + 1) / wanted[j]
            assert counts[i] <= wanted[i] * factor + 1 + 1e-6


@many
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_whole_wishes_that_fit_are_granted(wanted):
    assert fitted([float(n) for n in wanted], sum(wanted), 0, 300) == (wanted if sum(wanted) else [0] * len(wanted))


@pytest.mark.slow
@many
@given(wishes(), st.sampled_from([0.25, 4.0, 1024.0]))
def test_only_proportions_count(case, factor):
    wanted, *rest = case
    again = fitted([factor * w for w in wanted], *rest)
    assert np.abs(np.array(again) - fitted(wanted, *rest)).max() <= 1  # a remainder may round the other way


errors = st.lists(st.floats(1e-4, 10), min_size=1, max_size=40)


@many
@given(errors, st.integers(1, 2048), st.integers(0, 64))
def test_error_shares_add_up_above_the_floor(found, budget, least):
    shares = error_shares(found, budget, least)
    assert all(share >= least for share in shares)
    assert sum(shares) == pytest.approx(len(found) * max(budget, least))
    order = np.argsort(found, kind="stable")
    assert (np.diff(np.array(shares)[order]) >= -1e-9).all()


@many
@given(st.integers(1, 40), st.floats(1e-4, 10), st.integers(32, 2048))
def test_equal_errors_give_equal_budgets(layers, error, budget):
    shares = error_shares([error] * layers, budget, 32)
    assert fitted(shares, layers * budget, 32, 3 * budget) == [budget] * layers


@many
@given(errors, st.integers(32, 2048))
def test_budgets_by_errors_are_those_of_the_paper(found, budget):
    """Algorithm 1, rounding aside, wherever its ceiling of 3 budgets does not bind: a larger remainder here, the strongest layers there."""
    slow = slow_budgets(found, budget, 32)
    counts = fitted(error_shares(found, budget, 32), len(found) * budget, 32, 3 * budget)
    assert sum(counts) == len(found) * budget
    assert all(32 <= count <= 3 * budget for count in counts)
    if max(error_shares(found, budget, 32)) <= 3 * budget - 1:
        assert np.abs(np.array(counts) - slow).max() <= 2
        assert sum(slow) == sum(counts)
    ranks = np.argsort(found, kind="stable")
    assert (np.diff(np.array(counts)[ranks]) >= -1).all()


LAYOUT = as_model(tiny_model("llama"))


@many
@given(st.tuples(*[st.floats(1e-3, 10)] * 4), st.integers(13, 400), st.integers(1, 300))
def test_layers_together_have_the_budget_whatever_the_prompt(found, budget, more):
    """Budgets below the floor of 32 are shared out evenly; no layer gets more than the prompt holds, and others get what it cannot use."""
    length, least = budget + more, 12
    rule = ByLayer(found)
    counts = [rule.counts(layer, torch.zeros(1, length), budget, least, length, LAYOUT)[0] for layer in range(4)]
    assert sum(counts) == 4 * budget
    assert all(min(32, budget) <= count <= length for count in counts)
    if budget <= 32:
        assert counts == [budget] * 4


@pytest.mark.parametrize("found", [[], [0.0, 0.0], [1.0, -0.1], [1.0, float("nan")], [1.0, float("inf")]])
def test_errors_that_share_nothing_out_are_refused(found):
    with pytest.raises(HeadwiseError, match="layer errors must be finite, not negative, and not all zero"):
        error_shares(found, 64, 32)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(HeadwiseError, match="budget weights must be finite numbers"):
        fitted([1.0, float("nan")], 10, 0, 10)
