"""Linear probes: ridge regression, a threshold, calibrated probabilities, and how well they tell two classes apart. Plain numpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.stats.paired import Interval
from headwise.stats.ranks import auc

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Linear(NamedTuple):
    """A linear score: x @ weights + bias.

    Attributes:
        weights: [K].
        bias: One number.
    """

    weights: Values
    bias: float

    def scores(self, features: Values) -> Values:
        """[...] scores of features [..., K]."""
        return np.asarray(features @ self.weights + self.bias)


class Platt(NamedTuple):
    """A score as a probability: 1 / (1 + exp(-(slope * score + offset))), Platt (1999)."""

    slope: float
    offset: float

    def probability(self, scores: Values) -> Values:
        """[...] probabilities of the positive class."""
        return np.asarray(0.5 * (1 + np.tanh((self.slope * np.asarray(scores, dtype=np.float64) + self.offset) / 2)))


def ridge(features: Values, labels: Flags, penalty: float = 1e-3) -> Linear:
    """Least squares on labels 0 and 1 with a penalty on the weights of standardised features.

    Args:
        features: [N, K].
        labels: [N].
        penalty: Times N; above 0, so that there is a solution for any K. The bias is not penalised.

    Returns:
        Weights and bias for features as they are given; a feature that never changes has weight 0.

    Raises:
        HeadwiseError: One class is missing, or a feature is not finite.
    """
    _two_classes(labels)
    if not np.isfinite(features).all():
        raise HeadwiseError("features of the probe are NaN or infinite; is the model's dtype too small?")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    unit = (features - mean) / np.where(spread > 0, spread, 1.0)
    target = labels - labels.mean()
    gram = unit.T @ unit + penalty * len(unit) * np.eye(unit.shape[1])
    weights = np.linalg.solve(gram, unit.T @ target) / np.where(spread > 0, spread, np.inf)
    return Linear(weights, float(labels.mean() - mean @ weights))


def best_threshold(scores: Values, labels: Flags) -> float:
    """The score from which on a case counts as positive: the largest gap between true- and false-positive rate (Youden 1950).

    Args:
        scores: [N].
        labels: [N].

    Returns:
        Halfway between the lowest score that counts and the highest that does not; the lowest of several that are equally good.

    Raises:
        HeadwiseError: One class is missing.
    """
    _two_classes(labels)
    known = np.unique(scores)
    cuts = np.concatenate([[known[0] - 1.0], (known[1:] + known[:-1]) / 2])
    rates = [(scores[labels] > cut).mean() - (scores[~labels] > cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(rates))])


def platt(scores: Values, labels: Flags, steps: int = 100) -> Platt:
    """Platt's (1999) calibration by Newton's method, with his targets: a class of n cases is never told to be sure.

    Args:
        scores: [N] of a part that the scores were not fitted on.
        labels: [N].
        steps: At most; each is halved until the loss falls.

    Raises:
        HeadwiseError: One class is missing.
    """
    _two_classes(labels)
    positive, negative = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    spread = float(scores.std()) or 1.0
    design = np.stack([(scores - scores.mean()) / spread, np.ones_like(scores)], axis=1)
    found = np.array([0.0, np.log((positive + 1) / (negative + 1))])
    loss = _loss(design @ found, target)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (p - target)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        while scale > 1e-10 and _loss(design @ (found - scale * step), target) >= loss:
            scale /= 2
        if scale <= 1e-10:
            break
        found, before = found - scale * step, loss
        loss = _loss(design @ found, target)
        if before - loss < 1e-12:
            break
    return Platt(float(found[0] / spread), float(found[1] - found[0] * scores.mean() / spread))


def reliability(probabilities: Values, labels: Flags, bins: int = 10) -> tuple[float, list[dict[str, float]]]:
    """How far probabilities are from what happens (Guo et al. 2017, expected calibration error).

    Args:
        probabilities: [N] of the positive class, in [0, 1].
        labels: [N].
        bins: Equally wide ones.

    Returns:
        The mean gap, weighted by the number of cases in a bin, in [0, 1]; and per bin with cases `predicted`, `observed` and `cases`.
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    curve = [
        {"predicted": float(probabilities[here].mean()), "observed": float(labels[here].mean()), "cases": float(here.sum())}
        for here in (place == i for i in range(bins))
        if here.any()
    ]
    return sum(abs(row["predicted"] - row["observed"]) * row["cases"] for row in curve) / len(labels), curve


def bootstrap_auc(
    scores: Values, labels: Flags, groups: NDArray[np.integer[Any]], draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Area under the ROC curve with its percentile bootstrap interval; whole groups are resampled.

    Args:
        scores: [N].
        labels: [N].
        groups: [N] record that each case comes from: both cases of a pair stay together.
        draws: Number of resamplings; those without one of the classes are left out.
        seed: Of the resamplings.
        level: Coverage in (0, 1).

    Returns:
        The area for the cases themselves, and the interval.

    Raises:
        HeadwiseError: One class is missing.
    """
    _two_classes(labels)
    names, place = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(place == i) for i in range(len(names))]
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if labels[chosen].any() and not labels[chosen].all():
            found.append(auc(scores[chosen][labels[chosen]], scores[chosen][~labels[chosen]]))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(auc(scores[labels], scores[~labels]), float(low), float(high))


def _loss(logits: Values, target: Values) -> float:
    return float((np.logaddexp(0, logits) - target * logits).sum())


def _two_classes(labels: Flags) -> None:
    if labels.dtype != bool or not labels.any() or labels.all():
        raise HeadwiseError("a probe needs cases of both classes; one of them is missing")
