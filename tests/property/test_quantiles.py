"""The k-th largest from histograms against a full sort; images of numbers; rank statistics against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headwise.corpus.quantiles import TopCuts, images_of, tie_numbers, value_of
from headwise.heads import HeadwiseError
from headwise.stats.ranks import auc, average_ranks, ranks_within, spearman

many = settings(max_examples=60)
few = settings(max_examples=25)
floats = st.floats(width=32, allow_nan=False, allow_infinity=True)
# Many equal numbers, and numbers that share their first 16 bits.
crowded = st.one_of(floats, st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-20, 1.0 + 2**-22, -1.0, 3e-39]))


def sorted_choice(groups, values, ties, weights, wanted):
    """The slow way: sort everything, take from the top until the weights reach what is wanted."""
    taken = np.zeros(len(values), dtype=bool)
    for group, amount in enumerate(wanted):
        order = sorted(np.flatnonzero(groups == group), key=lambda i: (np.float32(values[i]), int(ties[i])), reverse=True)
        total = 0
        for i in order:
            if total >= amount:
                break
            taken[i] = True
            total += weights[i]
    return taken


def chosen(pieces, groups_count, wanted):
    """TopCuts over pieces (groups, images, ties, weights), each counted into a histogram of its own."""
    cuts, rounds = TopCuts(groups_count), 0
    while not cuts.done:
        whole = cuts.histogram()
        for piece in pieces:
            own = cuts.histogram()
            cuts.count(own, *piece)
            whole += own
        cuts.narrow(whole, np.asarray(wanted) if rounds == 0 else None)
        rounds += 1
    return cuts, rounds


@st.composite
def corpora(draw):
    size = draw(st.integers(1, 60))
    groups_count = draw(st.integers(1, 3))
    values = np.array(draw(st.lists(crowded, min_size=size, max_size=size)), dtype=np.float32)
    groups = np.array(draw(st.lists(st.integers(0, groups_count - 1), min_size=size, max_size=size)))
    weights = np.array(draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)))
    if draw(st.booleans()):
        weights[:] = 1
    share = draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9, 1.0]))
    totals = np.bincount(groups, weights, minlength=groups_count)
    wanted = np.round(share * totals).astype(np.int64)
    pieces = draw(st.integers(1, 4))
    return groups, values, weights, wanted, pieces


@few
@given(corpora(), st.integers(0, 5))
def test_what_is_taken_is_what_a_full_sort_takes(corpus, seed):
    groups, values, weights, wanted, pieces = corpus
    ties = tie_numbers("part", np.arange(len(values)), seed)
    images = images_of(values)
    parts = [p for p in np.array_split(np.arange(len(values)), pieces) if len(p)]
    cuts, _ = chosen([(groups[p], images[p], ties[p], weights[p]) for p in parts], len(wanted), wanted)
    expected = sorted_choice(groups, values, ties, weights, wanted)
    assert (cuts.takes(groups, images, ties) == expected).all()
    for group in range(len(wanted)):
        mine = expected & (groups == group)
        if mine.any():
            assert value_of(cuts.image(group)) == values[mine].min()
        else:
            assert cuts.image(group) is None


def test_two_rounds_are_enough_unless_the_cut_falls_between_equal_scores():
    groups, ties = np.zeros(1000, dtype=int), tie_numbers("part", np.arange(1000))
    ones = np.ones(1000, dtype=int)
    different = images_of(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    assert chosen([(groups, different, ties, ones)], 1, [200])[1] == 2
    assert chosen([(groups, different, ties, ones + 6)], 1, [1399])[1] == 2  # the document across the line is alone
    equal = images_of(np.repeat(np.float32([1, 2]), 500))
    assert chosen([(groups, equal, ties, ones)], 1, [500])[1] == 2
    cuts, rounds = chosen([(groups, equal, ties, ones)], 1, [200])
    assert rounds > 2
    assert cuts.takes(groups, equal, ties).sum() == 200


def test_equal_hashes_too_are_taken_or_left_together():
    """The last resort: keys that are equal in all 96 bits cannot be told apart."""
    same = np.full(4, 7, dtype=np.uint64)
    piece = (np.zeros(4, dtype=int), images_of(np.zeros(4)), same, np.ones(4, dtype=int))
    cuts, rounds = chosen([piece], 1, [2])
    assert rounds == 6
    assert cuts.takes(*piece[:3]).all()


def test_more_than_there_is_is_refused():
    cuts = TopCuts(1)
    with pytest.raises(HeadwiseError, match="5 are wanted of group 0, which has 0"):
        cuts.narrow(cuts.histogram(), np.array([5]))


@many
@given(st.lists(floats, min_size=1, max_size=50))
def test_images_keep_the_order_and_come_back(values):
    numbers = np.array(values, dtype=np.float32)
    images = images_of(numbers)
    assert ((images[:, None] < images[None]) == (numbers[:, None] < numbers[None])).all()
    assert [value_of(int(image)) for image in images] == numbers.tolist()


def test_an_image_of_nan_is_refused():
    with pytest.raises(HeadwiseError, match="1 of 2 values are NaN"):
        images_of(np.array([1.0, np.nan]))


def test_tie_numbers_depend_on_file_row_and_seed_and_spread():
    rows = np.arange(100_000)
    first = tie_numbers("a", rows)
    assert len(np.unique(first)) == len(rows)
    assert (tie_numbers("a", rows[500:510]) == first[500:510]).all()
    assert not (tie_numbers("b", rows) == first).any()
    assert not (tie_numbers("a", rows, seed=1) == first).any()
    high = np.bincount((first >> np.uint64(60)).astype(int), minlength=16)
    assert abs(high / len(rows) - 1 / 16).max() < 0.004
    assert abs(spearman(rows, first.astype(np.float64))) < 0.015


numbers = st.lists(st.integers(-4, 4), min_size=2, max_size=40)


@many
@given(numbers, numbers)
def test_ranks_are_those_of_scipy(a, b):
    assert (average_ranks(np.array(a)) == stats.rankdata(a)).all()
    size = min(len(a), len(b))
    x, y = np.array(a[:size]), np.array(b[:size])
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    else:
        assert np.isnan(spearman(x, y))
    expected = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert auc(np.array(a), np.array(b)) == pytest.approx(expected)


def test_empty_sides_have_no_auc():
    assert np.isnan(auc(np.array([]), np.array([1.0])))
    assert np.isnan(spearman(np.array([1.0]), np.array([1.0])))


def test_ranks_within_groups():
    groups = np.array([0, 1, 0, 1, 1])
    assert ranks_within(np.array([5.0, 1.0, 7.0, 3.0, 3.0]), groups) == pytest.approx([0.25, 1 / 6, 0.75, 2 / 3, 2 / 3])
