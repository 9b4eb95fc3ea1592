"""Linear probes: the ridge solution, thresholds, calibration and intervals against what can be worked out by hand or by scipy."""

import numpy as np
import pytest

from headwise.heads import HeadwiseError
from headwise.stats.places import best_position, offset_to, shifted, usual_shift
from headwise.stats.probes import best_threshold, bootstrap_auc, platt, reliability, ridge


def made(seed=0, n=400, gap=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.5
    return rng.normal(size=(n, 3)) * [1, 10, 0.1] + labels[:, None] * [gap, 0, 0.05], labels


def test_ridge_is_least_squares_where_the_penalty_is_small():
    features, labels = made()
    found = ridge(features, labels, penalty=1e-12)
    design = np.column_stack([features, np.ones(len(labels))])
    wanted = np.linalg.lstsq(design, labels.astype(float), rcond=None)[0]
    np.testing.assert_allclose([*found.weights, found.bias], wanted, atol=1e-8)
    strong = ridge(features, labels, penalty=1e6)
    assert np.abs(strong.weights).max() < 1e-5
    assert strong.bias == pytest.approx(labels.mean(), abs=1e-4)


def test_ridge_bears_more_features_than_cases_and_constant_ones():
    rng = np.random.default_rng(1)
    features = np.concatenate([rng.normal(size=(8, 20)), np.ones((8, 1))], axis=1)
    found = ridge(features, np.arange(8) < 4)
    assert found.weights[-1] == 0
    assert np.isfinite(found.weights).all()
    features[0, 0] = np.nan
    with pytest.raises(HeadwiseError, match="NaN"):
        ridge(features, np.arange(8) < 4)
    with pytest.raises(HeadwiseError, match="both classes"):
        ridge(features, np.ones(8, dtype=bool))


def test_the_threshold_is_the_best_one():
    scores, labels = np.array([0.1, 0.2, 0.4, 0.3, 0.9]), np.array([False, False, True, False, True])
    assert best_threshold(scores, labels) == pytest.approx(0.35)
    assert best_threshold(np.array([1.0, 1.0]), np.array([True, False])) == 0.0


def test_platt_is_the_minimum_of_its_loss():
    optimize = pytest.importorskip("scipy.optimize")
    features, labels = made(2)
    scores = features[:, 0]
    found = platt(scores, labels)
    n, m = labels.sum(), (~labels).sum()
    target = np.where(labels, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(ab):
        logits = ab[0] * scores + ab[1]
        return (np.logaddexp(0, logits) - target * logits).sum()

    best = optimize.minimize(loss, [1.0, 0.0], tol=1e-12).x
    np.testing.assert_allclose([found.slope, found.offset], best, atol=1e-4)
    assert found.probability(np.array([100.0, -100.0])) == pytest.approx([1, 0], abs=1e-6)


def test_platt_is_never_sure_of_separable_cases():
    labels = np.arange(20) >= 10
    found = platt(np.arange(20.0) * 1e-6, labels)
    p = found.probability(np.array([0.0, 19e-6]))
    assert 0 < p[0] < 0.2
    assert 0.8 < p[1] < 1


def test_calibration_error_of_true_probabilities_is_small():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    error, curve = reliability(p, rng.random(20_000) < p)
    assert error < 0.02
    assert sum(row["cases"] for row in curve) == 20_000
    assert reliability(np.ones(4), np.array([True, True, False, False]))[0] == pytest.approx(0.5)


def test_the_interval_of_the_area_holds_it_and_pairs_stay_together():
    features, labels = made(3, n=200)
    scores, groups = features[:, 0], np.arange(200)
    mean, low, high = bootstrap_auc(scores, labels, groups, draws=300)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(scores[labels][:, None] > scores[~labels]))
    same = bootstrap_auc(np.array([0.0, 1.0] * 30), np.array([False, True] * 30), np.arange(60) // 2, draws=50)
    assert same == (1.0, 1.0, 1.0)


def test_places():
    scores = np.array([0.0, 3.0, 1.0, 3.0])
    allowed = np.array([False, True, True, True])
    assert best_position(scores, allowed) == 1
    assert best_position(scores, np.zeros(4, dtype=bool)) == -1
    for value in (0.0, 1.0, -1.0):  # a position that no score was moved to is not preferred
        equal, everywhere = np.full(4, value), np.ones(4, dtype=bool)
        assert [best_position(equal, everywhere, shift) for shift in (-2, 0, 1)] == [2, 0, 0]
    assert best_position(np.array([-1.0, -3.0, -3.0]), np.array([False, True, True]), 1) == 1
    assert best_position(scores, np.array([True, False, False, False]), -1) == 0  # no other one is allowed
    assert shifted(np.array([[-9.0, 0.0], [-2.0, 1.0]]), 1).tolist() == [[0.0, -9.0], [1.0, -2.0]]
    assert shifted(scores, 1).tolist() == [3.0, 1.0, 3.0, 0.0]
    assert shifted(scores, -1).tolist() == [0.0, 0.0, 3.0, 1.0]
    assert shifted(scores[None], 2).tolist() == [[1.0, 3.0, 0.0, 0.0]]
    assert [offset_to(5, [1, 4, 9]), offset_to(5, [4, 6]), offset_to(2, [5])] == [1, 1, -3]
    assert [usual_shift([1, 1, 0]), usual_shift([9, 9]), usual_shift([]), usual_shift([1, 0])] == [1, 0, 0, 0]
