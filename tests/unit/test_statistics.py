"""Bootstrap, sign-flip and rank tests against known answers, scipy, and their own symmetries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headwise.heads import HeadwiseError
from headwise.stats import paired as statistics
from headwise.stats.paired import benjamini_hochberg, bootstrap_mean, mcnemar, rank_p, sign_flip_test

numbers = st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=1, max_size=9).map(np.array)


@given(numbers, st.integers(0, 1000))
def test_the_interval_holds_the_mean_and_stays_inside_the_data(values, seed):
    found = bootstrap_mean(values, draws=400, seed=seed)
    assert found.mean == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= found.low <= found.high <= values.max() + 1e-9
    assert found == bootstrap_mean(values, draws=400, seed=seed)


def test_the_interval_of_normal_values_is_the_known_one():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_mean(values, seed=1)
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)
    narrow = bootstrap_mean(values, level=0.5, seed=1)
    assert found.low < narrow.low < narrow.high < found.high


def test_a_constant_has_an_interval_of_width_0():
    assert bootstrap_mean(np.full(7, 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_exact_sign_flips_equal_scipy(alternative):
    x = np.random.default_rng(3).normal(0.3, 1, size=9)
    expected = stats.permutation_test((x,), np.mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf)
    assert sign_flip_test(x, alternative) == pytest.approx(expected.pvalue)


def test_known_sign_flip_answers():
    assert sign_flip_test(np.array([1.0, 2.0, 3.0, 4.0])) == 2 / 16
    assert sign_flip_test(np.array([1.0, 2.0, 3.0, 4.0]), "greater") == 1 / 16
    assert sign_flip_test(np.array([1.0, 2.0, 3.0, 4.0]), "less") == 1
    assert sign_flip_test(np.zeros(5)) == 1
    assert sign_flip_test(np.array([-3.0]), "less") == 0.5


@given(numbers)
def test_sign_flips_are_symmetric(x):
    assert sign_flip_test(x, "less") == sign_flip_test(-x, "greater")
    assert sign_flip_test(x) == sign_flip_test(-x)
    assert sign_flip_test(x) == pytest.approx(min(1, 2 * min(sign_flip_test(x, "less"), sign_flip_test(x, "greater"))))


@given(numbers, st.floats(1e-6, 1e6))
def test_sign_flips_do_not_depend_on_the_unit(x, scale):
    assert sign_flip_test(x) == sign_flip_test(x * scale)


def test_random_sign_flips_come_near_the_exact_answer_and_are_never_0():
    x = np.random.default_rng(5).normal(0.5, 1, size=12)
    exact = sign_flip_test(x)
    assert sign_flip_test(x, draws=4000, seed=1) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(x, draws=4000, seed=1) == sign_flip_test(x, draws=4000, seed=1)
    assert sign_flip_test(np.ones(50), draws=999) == 1 / 1000


def test_blocks_do_not_change_the_exact_answer(monkeypatch):
    x = np.random.default_rng(6).normal(size=10)
    whole = sign_flip_test(x), bootstrap_mean(x, draws=50).mean
    monkeypatch.setattr(statistics, "BLOCK", 70)
    assert (sign_flip_test(x), bootstrap_mean(x, draws=50).mean) == whole


def test_rank_p():
    assert rank_p(0.1, np.array([0.5, 0.6, 0.7])) == 0.25
    assert rank_p(0.5, np.array([0.5, 0.6, 0.7])) == 0.5
    assert rank_p(0.9, np.array([0.5, 0.6, 0.7])) == 1


@pytest.mark.parametrize("test", [bootstrap_mean, sign_flip_test, lambda x: rank_p(0.0, x)])
def test_what_cannot_be_tested_is_refused(test):
    with pytest.raises(HeadwiseError, match=r"at least one value; got shape \(0,\)"):
        test(np.array([]))
    with pytest.raises(HeadwiseError, match="1 of 2 values are NaN or infinite"):
        test(np.array([1.0, np.nan]))


def test_unknown_options_are_refused():
    with pytest.raises(HeadwiseError, match="unknown alternative 'both'; use two-sided, less, greater"):
        sign_flip_test(np.ones(3), "both")
    with pytest.raises(HeadwiseError, match=r"must lie in \(0, 1\); got 95"):
        bootstrap_mean(np.ones(3), level=95)


@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=12).map(np.array))
def test_corrected_p_values_are_those_of_scipy(values):
    assert benjamini_hochberg(values) == pytest.approx(stats.false_discovery_control(values))


def test_p_values_outside_of_0_and_1_are_refused():
    with pytest.raises(HeadwiseError, match="between 0 and 1"):
        benjamini_hochberg(np.array([0.2, 1.2]))


# ---- McNemar's test


@pytest.mark.parametrize(("won", "lost", "p"), [(0, 0, 1.0), (3, 0, 0.25), (0, 5, 0.0625), (8, 2, 0.109375), (4, 4, 1.0)])
def test_mcnemar_counts_what_changed(won, lost, p):
    """Values of the binomial distribution with one half, two-sided; items that stayed do not matter."""
    before = np.array([False] * won + [True] * lost + [True, False] * 7)
    after = np.array([True] * won + [False] * lost + [True, False] * 7)
    assert mcnemar(before, after) == pytest.approx(p)
    assert mcnemar(after, before) == pytest.approx(p)


def test_mcnemar_needs_the_same_items():
    for before, after in (([True], [True, False]), ([], [])):
        with pytest.raises(HeadwiseError, match="two lists of the same items"):
            mcnemar(np.array(before, dtype=bool), np.array(after, dtype=bool))
