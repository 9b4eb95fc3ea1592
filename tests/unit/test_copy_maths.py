"""Copy hits and copy scores against slow loops; agreement between score tables against known answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwise.maths.copy import copy_hits, copy_score
from headwise.methods.copy.options import MATCHES
from headwise.runtime.options import COPY_RULES as RULES
from headwise.stats.agreement import gini, pearson, split_half_reliability, top_overlap
from tests.reference.copy import slow_copy_hits, slow_copy_score

KEYS = [9, 5, 6, 7, 6, 9]  # the needle 5 6 7 6 stands at [1, 5)
NEEDLE = (1, 5)


def hits(argmax, emitted, match="token"):
    return copy_hits(torch.tensor(argmax), torch.tensor(KEYS), torch.tensor(emitted), NEEDLE, match).tolist()


def score(argmax, emitted, rule="set", match="token"):
    return copy_score(torch.tensor(argmax), torch.tensor(KEYS), torch.tensor(emitted), NEEDLE, rule, match).item()


def test_a_head_that_reads_the_needle_in_order_scores_one():
    assert hits([1, 2, 3, 4], [5, 6, 7, 6]) == [True] * 4
    for rule in RULES:
        for match in MATCHES:
            assert score([1, 2, 3, 4], [5, 6, 7, 6], rule, match) == 1.0


def test_a_hit_needs_both_the_place_and_the_token():
    assert hits([0, 1, 5, 3], [9, 6, 9, 7]) == [False, False, False, True]  # outside; wrong token; outside; right


def test_a_repeated_token_may_be_read_at_any_of_its_places_unless_the_position_is_asked_for():
    assert hits([1, 4, 3, 2], [5, 6, 7, 6], "token") == [True] * 4
    assert hits([1, 4, 3, 2], [5, 6, 7, 6], "position") == [True, False, True, False]
    assert score([1, 4, 3, 2], [5, 6, 7, 6], match="position") == 0.5


def test_the_same_place_read_twice_counts_once_in_the_set():
    assert score([1, 2, 3, 2], [5, 6, 7, 6], "set") == 0.75
    assert score([1, 2, 3, 2], [5, 6, 7, 6], "multiset") == 1.0


def test_a_model_that_repeats_the_needle_exceeds_one_only_as_a_multiset():
    argmax, emitted = [1, 2, 3, 4] * 3, [5, 6, 7, 6] * 3
    assert score(argmax, emitted, "set") == 1.0
    assert score(argmax, emitted, "multiset") == 3.0
    assert score(argmax, emitted, "multiset", "position") == 1.0


def test_no_attention_is_no_hit():
    assert hits([-1, -1], [9, 5]) == [False, False]
    assert score([-1] * 4, [5, 6, 7, 6]) == 0.0
    # Position -1 must not be read as the last key, which holds 9, even if the needle reaches to the end.
    assert not copy_hits(torch.tensor([-1]), torch.tensor(KEYS), torch.tensor([9]), (0, 6)).any()


def test_a_place_in_the_answer_itself_lies_behind_the_prompt():
    assert hits([6, 40], [9, 6]) == [False, False]


def test_needle_at_the_very_end_of_the_keys():
    got = copy_score(torch.tensor([4, 5]), torch.tensor(KEYS), torch.tensor([6, 9]), (4, 6), "set", "position")
    assert got.item() == 1.0


@st.composite
def runs(draw):
    size = draw(st.integers(1, 12))
    keys = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    steps = draw(st.integers(1, 10))
    emitted = draw(st.lists(st.integers(0, 3), min_size=steps, max_size=steps))
    heads = draw(st.lists(st.lists(st.integers(-1, size + 2), min_size=steps, max_size=steps), min_size=6, max_size=6))
    return keys, (start, stop), emitted, heads


@given(runs())
def test_scores_equal_slow_loops_and_keep_their_order(run):
    keys, needle, emitted, heads = run
    argmax = torch.tensor(heads).view(2, 3, -1)
    tables = {}
    for match in MATCHES:
        found = copy_hits(argmax, torch.tensor(keys), torch.tensor(emitted), needle, match)
        assert found.view(6, -1).tolist() == [slow_copy_hits(head, keys, emitted, needle, match) for head in heads]
        for rule in RULES:
            table = copy_score(argmax, torch.tensor(keys), torch.tensor(emitted), needle, rule, match)
            assert table.shape == (2, 3)
            assert table.dtype == torch.float32
            slow = [slow_copy_score(head, keys, emitted, needle, rule, match) for head in heads]
            assert table.flatten().tolist() == pytest.approx(slow, abs=1e-6)
            tables[rule, match] = table
    for match in MATCHES:
        assert (tables["set", match] >= 0).all()
        assert (tables["set", match] <= 1).all()
        assert (tables["set", match] <= tables["multiset", match]).all()
    for rule in RULES:
        assert (tables[rule, "position"] <= tables[rule, "token"]).all()


NAN = math.nan


def test_gini_of_known_tables():
    assert gini(np.array([2.0, 2.0, 2.0, 2.0])) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)  # (n - 1) / n
    assert gini(np.array([[1.0, NAN], [3.0, NAN]])) == pytest.approx(0.25)
    assert math.isnan(gini(np.zeros(4)))
    assert math.isnan(gini(np.array([NAN])))


def test_pearson_of_known_tables():
    a = np.array([[0.0, 1.0], [2.0, NAN]])
    assert pearson(a, 3 * a + 1) == pytest.approx(1)
    assert pearson(a, -a) == pytest.approx(-1)
    assert pearson(a, np.array([[0.0, 1.0], [0.0, 9.0]])) == pytest.approx(0)
    assert math.isnan(pearson(a, np.ones((2, 2))))
    assert math.isnan(pearson(a, np.full((2, 2), NAN)))


def test_split_half_reliability_of_equal_runs_is_one_and_needs_two():
    run = np.array([[0.1, 0.9], [0.3, 0.0]])
    assert split_half_reliability(np.stack([run] * 4)) == pytest.approx(1)
    assert math.isnan(split_half_reliability(run[None]))
    assert math.isnan(split_half_reliability(np.ones((4, 2, 2))))
    noisy = np.random.default_rng(0).normal(size=(8, 4, 4))
    assert split_half_reliability(noisy, seed=3) == split_half_reliability(noisy, seed=3)
    assert abs(split_half_reliability(noisy)) < 0.5


def test_top_overlap_of_known_tables():
    a = np.array([[5.0, 4.0, 3.0], [2.0, 1.0, NAN]])
    assert top_overlap(a, a, 3) == 1
    assert top_overlap(a, -a, 2) == 0
    assert top_overlap(a, np.array([[5.0, NAN, 3.0], [4.0, 1.0, NAN]]), 2) == 0.5


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_gini_lies_between_equal_and_one_head(values):
    found = gini(np.array(values))
    assert math.isnan(found) == (sum(values) <= 0)
    if sum(values) > 1e-6:
        assert -1e-9 <= found <= 1 - 1 / len(values) + 1e-9
