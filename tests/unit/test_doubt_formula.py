"""Hits, the four cases and expressions over tables against slow loops from the method card; Wilson's interval."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.heads import HeadwiseError
from headwise.methods.doubt.formula import CASES, four_cases, hits
from headwise.stats.expressions import evaluate
from headwise.stats.paired import wilson
from tests.reference import doubt as slow

NAMES = [*CASES, "misleading", "doubt"]
SHAPE = (2, 3)


# ---- hits


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)).map(lambda one: (one[0], one[0] + one[1])), max_size=3),
    st.integers(1, 9),
    st.booleans(),
)
def test_hits_of_any_rows(rows, spans, top, sink):
    """Small whole numbers, so that many weights are equal."""
    got = hits(torch.tensor(rows, dtype=torch.float32)[None], spans, top, sink)
    assert got.shape == (1, len(rows))
    assert got[0].tolist() == [slow.hit(row, spans, top, sink) for row in rows]


def test_hits_by_hand():
    row = torch.tensor([9.0, 1.0, 5.0, 5.0, 2.0])
    assert bool(hits(row, [(2, 3)], 1))  # of two equal weights the earlier one
    assert not bool(hits(row, [(3, 4)], 1))
    assert bool(hits(row, [(3, 4)], 2))
    assert not bool(hits(row, [(0, 1)], 5))  # the first position never counts
    assert bool(hits(row, [(0, 1)], 1, sink=True))
    assert not bool(hits(row, [(2, 3)], 1, sink=True))
    assert not bool(hits(row, [], 5))


# ---- the four cases


def same(got, expected):
    assert got.shape == SHAPE
    for layer, head in np.ndindex(*SHAPE):
        value = expected[layer][head]
        assert np.isnan(got[layer, head]) if value is None else got[layer, head] == pytest.approx(float(value), abs=1e-12)


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_four_cases_of_any_hits(count, seed, share):
    rng = np.random.default_rng(seed)
    leave, keep = (rng.random((2, count, *SHAPE)) < 0.5)[:]
    flipped = rng.random(count) < share
    expected = slow.cases(leave.tolist(), keep.tolist(), flipped.tolist())
    got = four_cases(leave, keep, flipped)
    assert set(got) == set(expected)
    for name, table in expected.items():
        same(got[name], table)


def test_four_cases_by_hand():
    """One head: of four dialogues that flipped three hit the option that gives up, of two that held one does."""
    leave = np.array([1, 1, 1, 0, 1, 0], dtype=bool)[:, None, None]
    keep = np.array([0, 1, 0, 0, 1, 1], dtype=bool)[:, None, None]
    got = four_cases(leave, keep, np.array([1, 1, 1, 1, 0, 0], dtype=bool))
    assert {name: float(table[0, 0]) for name, table in got.items()} == {
        "case1": 0.75, "case2": 0.25, "case3": 0.5, "case4": 1.0, "misleading": 0.25,
    }  # fmt: skip


# ---- expressions


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(1)
    return {name: rng.choice([-0.5, 0.0, 0.2, 0.5, 0.8], size=SHAPE) for name in NAMES}


def at(tables, head):
    return {name: [float(table[head])] for name, table in tables.items()}


TREES = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: st.tuples(st.sampled_from("|&-"), inner, inner),
    max_leaves=8,
)


@settings(max_examples=150)
@given(TREES, st.sampled_from([None, 0.1, 0.2, 0.5]))
def test_any_expression_in_brackets(tables, tree, threshold):
    got = evaluate(slow.written(tree), tables, threshold)
    for head in np.ndindex(*SHAPE):
        value = slow.value_of(tree, at(tables, head), 0, threshold)
        assert got[head] == pytest.approx(value if threshold is None or value >= threshold else 0.0, abs=1e-12)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=6),
    st.lists(st.sampled_from("|&-"), min_size=5, max_size=5),
    st.booleans(),
)
def test_and_binds_first_and_the_rest_goes_from_left_to_right(tables, names, signs, is_set):
    terms = [names[0]]
    sums = []
    for sign, name in zip(signs, names[1:], strict=False):
        if sign == "&":
            terms[-1] = ("&", terms[-1], name)
        else:
            terms.append(name)
            sums.append(sign)
    tree = terms[0]
    for sign, term in zip(sums, terms[1:], strict=True):
        tree = (sign, tree, term)
    text = names[0] + "".join(f"{sign}{name}" for sign, name in zip(signs, names[1:], strict=False))
    threshold = 0.2 if is_set else None
    np.testing.assert_array_equal(evaluate(text, tables, threshold), evaluate(slow.written(tree), tables, threshold))


def test_expressions_by_hand():
    tables = {"a": np.array([[0.1, 0.6]]), "b": np.array([[0.7, 0.5]]), "c": np.array([[0.4, 0.9]])}
    assert evaluate("a", tables).tolist() == [[0.1, 0.6]]
    assert evaluate("a | b & c", tables).tolist() == [[0.4, 0.6]]
    assert evaluate("(a | b) & c", tables).tolist() == [[0.4, 0.6]]
    assert evaluate("c - a - a", tables) == pytest.approx(np.array([[0.2, -0.3]]))
    assert evaluate("c - (a - a)", tables).tolist() == [[0.4, 0.9]]
    assert evaluate("a | b", tables, 0.55).tolist() == [[0.7, 0.6]]
    assert evaluate("a & b", tables, 0.55).tolist() == [[0.0, 0.0]]
    assert evaluate("a & b", tables, 0.5).tolist() == [[0.0, 0.5]]
    assert evaluate("c - b", tables, 0.3).tolist() == [[0.0, 0.0]]
    assert evaluate("c - b", tables, 0.6).tolist() == [[0.0, 0.9]]
    assert tables["a"].tolist() == [[0.1, 0.6]]  # nothing is changed in place


def test_heads_without_a_score_stay_without_one():
    tables = {"a": np.array([[np.nan, 0.5]]), "b": np.array([[0.2, 0.3]])}
    for text in ("a", "a | b", "a & b", "a - b", "b - a"):
        for threshold in (None, 0.1):
            found = evaluate(text, {name: np.where(np.isnan(tables["a"]), np.nan, table) for name, table in tables.items()}, threshold)
            assert np.isnan(found[0]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("case1 |", "ends too early"),
        ("case1 - & case2", "unknown table '&'"),
        ("case5", "unknown table 'case5' in the expression; use case1, case2"),
        ("(case1", "a bracket of the expression is never closed"),
        ("(case1 case2)", "a bracket of the expression is never closed"),
        ("case1)", r"cannot be read from '\)' on"),
        ("case1 case2", "cannot be read from 'case2' on"),
        ("case1 + case2", r"cannot be read from '\+ case2' on"),
        ("1 | case1", r"cannot be read from '1 \| case1' on"),
        ("()", r"unknown table '\)'"),
    ],
)
def test_expressions_that_cannot_be_read(tables, text, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        evaluate(text, tables)
    assert "\n" not in str(caught.value)


# ---- Wilson's interval


def test_wilson_by_hand():
    """z = 2: n = 10, p = 0.5 gives (0.5 + 0.2) / 1.4 -+ 2 sqrt(0.025 + 0.01) / 1.4; none of 4 gives 0 to 1/2."""
    share, low, high = wilson(5, 10, 2.0)
    assert share == 0.5
    assert (low, high) == pytest.approx((0.5 - 2 * 0.035**0.5 / 1.4, 0.5 + 2 * 0.035**0.5 / 1.4), abs=1e-12)
    assert wilson(0, 4, 2.0) == pytest.approx((0, 0, 0.5))
    assert wilson(4, 4, 2.0) == pytest.approx((1, 0.5, 1))


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (1, 3), (7, 10), (45, 400), (270, 400), (400, 400)])
def test_wilson_solves_its_own_equation(count, total):
    share, low, high = wilson(count, total)
    assert share == count / total
    assert (low, high) == pytest.approx(slow.wilson(count, total), abs=1e-9)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_shares_of_nothing(count, total):
    with pytest.raises(HeadwiseError, match="a share needs a count"):
        wilson(count, total)
