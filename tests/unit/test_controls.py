"""Layer-matched random heads: same layers, never the chosen ones, never one twice, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.stats.controls import any_layer_random, layer_matched_random, norm_matched_random

NAN = float("nan")


def layers_of(heads):
    return sorted(head.layer for head in heads)


@st.composite
def choices(draw):
    """A pool and at most half of it, chosen."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    pool = np.array(draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape)
    inside = [(int(layer), int(head)) for layer, head in np.argwhere(pool)]
    chosen = draw(st.permutations(inside))[: draw(st.integers(0, len(inside) // 2))]
    return HeadSet.of(chosen, shape, "some heads"), pool


@given(choices(), st.integers(0, 2**31))
def test_a_draw_is_disjoint_distinct_and_inside_the_pool(choice, seed):
    chosen, pool = choice
    drawn = layer_matched_random(chosen, pool, seed)
    assert len(drawn) == len(chosen)  # HeadSet refuses a head named twice
    assert not set(drawn) & set(chosen)
    assert all(pool[head] for head in drawn)
    assert drawn == layer_matched_random(chosen, pool, seed)
    free = pool & ~chosen.mask()
    counts = np.bincount(layers_of(chosen), minlength=len(pool)) if len(chosen) else np.zeros(len(pool), int)
    if (counts <= free.sum(axis=1)).all():
        assert layers_of(drawn) == layers_of(chosen)
        assert "too few" not in drawn.chosen_by
    else:
        assert "too few" in drawn.chosen_by


def test_draws_of_different_seeds_differ_and_reach_every_other_head():
    chosen = HeadSet.of([(1, 3)], (2, 8), "top 1")
    heads = {layer_matched_random(chosen, np.ones((2, 8), bool), (0, 1, i)).heads[0] for i in range(200)}
    assert heads == {(1, head) for head in range(8) if head != 3}


def test_unscored_heads_are_never_drawn():
    scores = HeadScores(np.array([[0.9, 0.1, NAN, NAN], [0.2, NAN, NAN, 0.3]]), "copy")
    for seed in range(20):
        assert layer_matched_random(scores.top(1), scores, seed).heads == ((0, 1),)


def test_missing_heads_come_from_the_nearest_layer_and_that_is_told():
    pool = np.ones((4, 2), bool)
    chosen = HeadSet.of([(3, 0), (3, 1), (1, 0)], pool.shape, "top 3")
    drawn = layer_matched_random(chosen, pool, 0)
    # Layer 3 is used up by the chosen ones; layer 2 is nearest and has two heads; layer 1 keeps its own partner.
    assert drawn.heads[2] == (1, 1)
    assert layers_of(drawn.heads[:2]) == [2, 2]
    assert drawn.chosen_by.endswith("for top 3; too few heads: layer 2 for layer 3, layer 2 for layer 3")
    assert "seed 0" in drawn.chosen_by


def test_of_two_equally_near_layers_the_lower_one_gives():
    pool = np.ones((3, 1), bool)
    assert layer_matched_random(HeadSet.of([(1, 0)], pool.shape), pool, 5).heads == ((0, 0),)


def test_impossible_draws_are_refused():
    pool = np.zeros((2, 3), bool)
    pool[0] = True
    with pytest.raises(
        HeadwiseError, match="2 random heads asked for, but only 1 heads are left beside the 2 chosen ones; choose fewer"
    ):
        layer_matched_random(HeadSet.of([(0, 0), (0, 1)], pool.shape), pool, 0)
    with pytest.raises(HeadwiseError, match="the chosen heads belong to a model of 2 x 4, the pool to one of 2 x 3"):
        layer_matched_random(HeadSet.of([(0, 0)], (2, 4)), pool, 0)


@given(choices(), st.integers(0, 2**31))
def test_heads_of_any_layer_and_of_one_norm_are_disjoint_and_distinct_too(choice, seed):
    chosen, pool = choice
    norms = np.where(pool, np.random.default_rng(seed).random(pool.shape), NAN)
    for draw in (lambda: any_layer_random(chosen, pool, seed), lambda: norm_matched_random(chosen, norms, seed)):
        drawn = draw()
        assert len(drawn) == len(chosen)
        assert not set(drawn) & set(chosen)
        assert all(pool[head] for head in drawn)
        assert drawn == draw()


def test_norm_matched_heads_have_the_nearest_norms():
    norms = np.array([[1.0, 1.1, 5.0, 5.2], [1.2, 9.0, 5.1, NAN]])
    chosen = HeadSet.of([(0, 0), (0, 2)], norms.shape)
    drawn = norm_matched_random(chosen, norms, 0, nearest=1)
    assert [tuple(head) for head in drawn] == [(0, 1), (1, 2)]
    several = {next(iter(norm_matched_random(chosen, norms, seed, nearest=2))) for seed in range(30)}
    assert several == {(0, 1), (1, 0)}


def test_heads_of_any_layer_come_from_any_layer():
    chosen = HeadSet.of([(0, 0)], (3, 2))
    layers = {next(iter(any_layer_random(chosen, np.ones((3, 2), bool), seed))).layer for seed in range(40)}
    assert layers == {0, 1, 2}


def test_too_few_other_heads_are_refused():
    chosen = HeadSet.of([(0, 0), (0, 1)], (1, 3))
    for draw in (any_layer_random, norm_matched_random):
        with pytest.raises(HeadwiseError, match="only 1 heads are left"):
            draw(chosen, np.ones((1, 3), bool) if draw is any_layer_random else np.ones((1, 3)), 0)
