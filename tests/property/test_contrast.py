"""Properties of the contrast of two next-token distributions, and the formulas against plain numbers."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headwise.heads import HeadwiseError
from headwise.maths.contrast import COMBINE, Contrast, divergence, entropy, routed_weight, sampled
from tests.reference import contrast as slow

many = settings(max_examples=80)
rules = st.sampled_from(sorted(COMBINE))
alphas = st.floats(0, 3)


@st.composite
def branches(draw):
    """Two rows of logits over one vocabulary."""
    size = draw(st.integers(2, 12))
    logits = st.integers(-1200, 1200).map(lambda n: n / 100)  # apart by more than what rounding may swap
    rows = st.lists(logits, min_size=size, max_size=size)
    return torch.tensor(draw(rows)), torch.tensor(draw(rows))


@many
@given(branches(), rules, alphas, st.none() | st.floats(0.01, 1))
def test_the_formula_is_that_of_the_papers(pair, combine, alpha, beta):
    scores, weight = Contrast(combine, alpha, beta).scores(*pair)
    wanted, a = slow.contrasted(*pair, combine, alpha, beta)
    first, second = (float(entropy(one.log_softmax(-1))) for one in pair)
    # Which branch is the surer one is else a matter of rounding, and so is the ratio of two entropies that float32 can hardly tell from 0.
    assume(combine != "routed" or (abs(first - second) > 1e-5 and first + second > 0.02))
    assert float(weight) == pytest.approx(a, abs=2e-5)
    got = scores.softmax(dim=-1)
    allowed = torch.tensor(wanted) > 0
    near = beta is not None and bool(((pair[0].softmax(-1) / pair[0].softmax(-1).max() - beta).abs() < 1e-4).any())
    if not near:  # a token at the very limit may fall on either side
        assert torch.equal(~scores.isneginf(), allowed) or bool((got[~allowed] < 1e-6).all())
        torch.testing.assert_close(got, torch.tensor(wanted), atol=2e-4, rtol=1e-3)


@many
@given(branches(), rules, st.none() | st.floats(0.01, 1))
def test_without_a_weight_or_a_difference_the_positive_branch_is_left(pair, combine, beta):
    plain = pair[0].log_softmax(-1)
    for scores, _ in (Contrast("fixed", 0, beta).scores(*pair), Contrast(combine, 1.5, beta).scores(pair[0], pair[0].clone())):
        kept = ~scores.isneginf()
        torch.testing.assert_close(scores[kept], plain[kept])
        assert int(scores.argmax()) == int(pair[0].argmax())


@many
@given(branches(), rules, alphas, st.floats(-50, 50), st.floats(-50, 50))
def test_a_constant_on_the_logits_changes_nothing(pair, combine, alpha, up, down):
    first, a = Contrast(combine, alpha).scores(*pair)
    again, b = Contrast(combine, alpha).scores(pair[0] + up, pair[1] + down)
    if combine != "routed" or float(a) == pytest.approx(float(b), abs=1e-3):  # rounding may turn a tie
        torch.testing.assert_close(again, first, atol=5e-3, rtol=1e-3)


@many
@given(branches(), rules, alphas, st.floats(0.001, 1))
def test_plausibility_never_leaves_nothing(pair, combine, alpha, beta):
    scores, _ = Contrast(combine, alpha, beta).scores(*pair)
    kept = ~scores.isneginf()
    assert kept[pair[0].argmax()]
    p = pair[0].softmax(-1)
    assert bool((p[kept] >= beta * p.max() * (1 - 1e-4)).all())
    if beta == 1:
        assert int(scores.argmax()) in (p == p.max()).nonzero().flatten().tolist()


@many
@given(branches())
def test_divergence_lies_between_0_and_1_and_is_symmetric(pair):
    first, second = (x.log_softmax(-1) for x in pair)
    there, back = divergence(first, second), divergence(second, first)
    assert 0 <= float(there) <= 1
    assert float(there) == pytest.approx(float(back), abs=1e-6)
    assert float(divergence(first, first)) == 0
    assert 0 <= float(entropy(first)) <= math.log(len(first)) + 1e-5


def test_distributions_that_share_nothing_are_one_bit_apart():
    first, second = torch.tensor([40.0, -40, -40]).log_softmax(-1), torch.tensor([-40.0, 40, -40]).log_softmax(-1)
    assert float(divergence(first, second)) == pytest.approx(1)


def test_routing_corrects_resists_and_leaves_agreement_alone():
    sure, unsure = torch.tensor([6.0, 0, 0]).log_softmax(-1), torch.tensor([0.0, 0.5, 0]).log_softmax(-1)
    assert float(routed_weight(sure, unsure, 0.7)) == pytest.approx(0.7)  # the context is sure: go beyond it
    between = float(routed_weight(unsure, sure, 0.7))  # the memory is sure: it decides
    assert -1 < between < -0.5
    scores, _ = Contrast("routed", 0.7).scores(unsure, sure)
    assert int(scores.argmax()) == 0
    assert float(routed_weight(sure, torch.tensor([0.5, 0.4, 0]).log_softmax(-1), 0.7)) == 0
    certain = torch.tensor([0.0, -torch.inf])
    assert float(routed_weight(torch.tensor([0.4, 0.6]).log(), certain, 0.7)) == -1
    assert float(routed_weight(torch.tensor([-torch.inf, 0.0]), certain, 0.7)) == pytest.approx(0.7)


def test_tokens_that_may_not_be_chosen_stay_barred():
    first = torch.tensor([[-torch.inf, 1.0, 2.0]])
    for combine in COMBINE:
        scores, _ = Contrast(combine).scores(first, torch.tensor([[9.0, 0.0, 3.0]]))
        assert scores[0].isneginf().tolist() == [True, False, False]
    scores, _ = Contrast("fixed", -1).scores(first, torch.tensor([[9.0, 0.0, 3.0]]))
    assert scores[0].isneginf().tolist() == [True, False, False]


def test_rows_are_combined_alone():
    rows = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    for combine in COMBINE:
        rule = Contrast(combine, plausibility=0.1)
        scores, weight = rule.scores(rows[0], rows[1])
        for i in range(5):
            one, own = rule.scores(rows[0, i], rows[1, i])
            assert torch.equal(scores[i], one)
            assert float(weight[i]) == float(own)


def test_a_cap_holds_the_entropy():
    even = torch.zeros(1000)
    assert float(Contrast("entropy").scores(even, even)[1]) == pytest.approx(math.log(1000), rel=1e-5)
    assert float(Contrast("entropy", cap=2).scores(even, even)[1]) == 2


@many
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.05, 1), st.floats(0.1, 3), st.integers(0, 99))
def test_a_draw_comes_from_the_best_tokens(logits, top_p, temperature, seed):
    scores = torch.tensor(logits)
    token = sampled(scores, temperature, top_p, torch.Generator().manual_seed(seed))
    p = (scores.double() / temperature).softmax(-1)
    better = float(p[p > p[token] * (1 + 1e-5)].sum())
    assert better < top_p + 1e-5
    assert sampled(scores, 0, top_p, torch.Generator()) == int(scores.argmax())
    assert token == sampled(scores, temperature, top_p, torch.Generator().manual_seed(seed))


def test_draws_are_as_frequent_as_they_are_probable():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()
    drawn = [sampled(scores, 1.0, 0.75, generator) for _ in range(2000)]
    assert set(drawn) == {2, 3}  # 0.5 + 0.3 reach 0.75
    assert drawn.count(2) / 2000 == pytest.approx(0.625, abs=0.04)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"combine": "magic"}, "unknown rule 'magic' to combine branches; use fixed, entropy, adaptive, routed"),
        ({"alpha": "much"}, "alpha must be a finite number; got 'much'"),
        ({"alpha": math.nan}, "alpha must be a finite number"),
        ({"alpha": -1.5}, "alpha must lie in [-1, 1e+06] for combine=fixed; got -1.5"),
        ({"combine": "adaptive", "alpha": -0.5}, "alpha must lie in [0, 1e+06] for combine=adaptive"),
        ({"plausibility": 0}, "plausibility must be above 0 and at most 1"),
        ({"plausibility": 1.1}, "plausibility must be above 0 and at most 1"),
        ({"cap": 2}, "a cap belongs to combine=entropy; leave it out for combine=fixed"),
        ({"combine": "entropy", "cap": -1}, "the cap must be at least 0; got -1"),
    ],
)
def test_wrong_rules_are_refused(options, part):
    with pytest.raises(HeadwiseError) as caught:
        Contrast(**options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_the_rule():
    assert {name: Contrast(name).alpha for name in COMBINE} == COMBINE
