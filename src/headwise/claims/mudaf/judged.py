"""What the registered rules need of trained models. Questions of several models are paired: the mean over models is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.stats.paired import bootstrap_mean

Values = np.ndarray


class Trained(NamedTuple):
    """One model and all its trainings.

    Attributes:
        name: Of the model.
        measured: Condition -> `f1` [question, layer, head], `answers` and `ablated` [question], `perplexity`.
        heads: Condition -> (layer, head) that were trained; of `plain` and `before` the best ones.
        found: `best_f1`, `recall`, and where there are copy heads `jaccard` and `spearman`.
    """

    name: str
    measured: Mapping[str, Mapping[str, Any]]
    heads: Mapping[str, Sequence[tuple[int, int]]]
    found: Mapping[str, float]

    def f1(self, condition: str, heads: str = "best") -> Values:
        """[question] mean F1 of some heads after a training."""
        own = self.heads[heads]
        runs = np.asarray(self.measured[condition]["f1"], float)
        return np.asarray(runs[:, [layer for layer, _ in own], [head for _, head in own]].mean(axis=1))

    def right(self, condition: str, key: str = "answers") -> Values:
        """[question] 1 where the answer is right; `ablated`: without the best heads."""
        return np.asarray(self.measured[condition][key], float)

    def lost(self, condition: str) -> Values:
        """[question] what the best heads are worth."""
        return np.asarray(self.right(condition) - self.right(condition, "ablated"))

    def still_best(self, condition: str) -> int:
        """How many of the best heads, found before, are among as many best heads after a training."""
        scores = np.asarray(self.measured[condition]["f1"]).mean(axis=0)
        after = np.argsort(-scores, axis=None, kind="stable")[: len(self.heads["best"])].tolist()
        return sum(layer * scores.shape[1] + head in after for layer, head in self.heads["best"])


class Models:
    """One or several models that are judged together."""

    def __init__(self, models: Sequence[Trained]) -> None:
        self.models = models

    def over(self, values: Callable[[Trained], Values]) -> Number:
        """Mean over models and questions with its interval over questions."""
        mean, low, high = bootstrap_mean(np.stack([values(one) for one in self.models]).mean(axis=0))
        return round(mean, 6), round(low, 6), round(high, 6)

    def same_sign(self, values: Callable[[Trained], Values]) -> float:
        """Share of the models whose own mean has the sign of the mean of all."""
        each = [float(values(one).mean()) for one in self.models]
        return float(np.mean([np.sign(value) == np.sign(np.mean(each)) for value in each]))

    def change(self, name: str, values: Callable[[Trained], Values]) -> dict[str, Number]:
        """Both."""
        return {name: self.over(values), "same_sign": self.same_sign(values)}

    def mean(self, values: Callable[[Trained], Values]) -> float:
        """Without an interval."""
        return float(np.mean([values(one).mean() for one in self.models]))

    def plain_right(self) -> dict[str, Number]:
        """The gate: exact match of the worst model after plain fine-tuning."""
        return {"plain_right": float(min(one.right("plain").mean() for one in self.models))}


def findings(name: str, models: Sequence[Trained]) -> dict[str, Finding]:
    """Key -> finding of the claims that every set has."""
    all_of = Models(models)
    gate = all_of.plain_right()
    answer = all_of.change("difference", lambda m: m.right("best") - m.right("plain")) | gate
    chance = all_of.change("difference", lambda m: m.right("best") - m.right("random")) | gate
    cause = all_of.change("difference", lambda m: m.lost("best") - m.lost("plain")) | gate | {"plain_loss": all_of.over(lambda m: m.lost("plain"))}
    focus = all_of.change("gain", lambda m: m.f1("middle", "middle") - m.f1("plain", "middle"))
    weak = all_of.change("gain", lambda m: m.f1("weak", "weak") - m.f1("before", "weak"))
    weak["strong_above"] = all_of.over(lambda m: m.f1("best", "best") - m.f1("weak", "weak"))
    focus["plain"] = all_of.over(lambda m: m.f1("plain", "middle"))
    ratio = max(m.measured["best"]["perplexity"] / m.measured["plain"]["perplexity"] for m in models)
    made = {
        "not_copy": not_copy(models), "focus": Finding(focus), "weak": Finding(weak), "answers": Finding(answer), "better": Finding(answer),
        "not_random": Finding(chance), "causal": Finding(cause), "text": Finding({"ratio": round(ratio, 6)}),
    }  # fmt: skip
    return {f"mudaf.{name}.{key}": one for key, one in made.items()}


def not_copy(models: Sequence[Trained]) -> Finding:
    """The worst model's numbers."""
    if any("jaccard" not in m.found for m in models):
        return Finding.none("a model solves no needle, so it has no copy heads")
    highest = {key: float(max(m.found[key] for m in models)) for key in ("jaccard", "spearman")}
    return Finding(highest | {key: float(min(m.found[key] for m in models)) for key in ("best_f1", "recall")})


def _row(every: Models, condition: str) -> dict[str, Any]:
    return {
        "condition": condition,
        "exact_match": every.mean(lambda m: m.right(condition)),
        "ablated": every.mean(lambda m: m.right(condition, "ablated")),
        "f1_trained": every.mean(lambda m: m.f1(condition, condition)),
        "f1_best": every.mean(lambda m: m.f1(condition)),
        "still_best": float(np.mean([m.still_best(condition) for m in every.models])),
        "perplexity": float(np.mean([m.measured[condition]["perplexity"] for m in every.models])),
    }


def more_findings(name: str, models: Sequence[Trained]) -> dict[str, Finding]:
    """Key -> finding of the claims about other numbers of heads, other alphas and the loss on attention mass."""
    all_of = Models(models)
    places = {"1": "top-1", "2": "top-2", "4": "top-4", "8": "best"}
    sizes = {k: all_of.mean(partial(Trained.right, condition=place)) for k, place in places.items()}
    best = max(sizes, key=lambda k: sizes[k])
    number = all_of.over(lambda m: m.right("top-all") - m.right(places[best]))
    all_heads: dict[str, Number] = {"all_above_best": number, "best_right": sizes[best], **all_of.plain_right()}
    of_alpha = {"0": "plain", "0.3": "alpha-0.3", "0.7": "best", "1": "alpha-1"}
    alphas = {
        alpha: (all_of.mean(partial(Trained.f1, condition=place)), all_of.mean(partial(Trained.right, condition=place)))
        for alpha, place in of_alpha.items()
    }
    others = [pair for alpha, pair in alphas.items() if alpha != "1"]
    alpha = {"f1_above": alphas["1"][0] - max(f1 for f1, _ in others), "right_above": alphas["1"][1] - min(right for _, right in others)}
    mass = all_of.change("gain", lambda m: m.f1("lse") - m.f1("plain"))
    told = ", ".join(f"alpha {name}: F1 {f1:.3f}, right {right:.3f}" for name, (f1, right) in alphas.items())
    made = {
        "more_heads": Finding(all_heads, note=f"K = {best} is best of 1, 2, 4, 8"),
        "alpha": Finding({key: round(value, 6) for key, value in alpha.items()}, note=told),
        "lse": Finding(mass | {"plain": all_of.over(lambda m: m.f1("plain"))}),
    }  # fmt: skip
    return {f"mudaf.{name}.{key}": one for key, one in made.items()}


def details(models: Sequence[Trained]) -> dict[str, Any]:
    """Means over models, one row per condition; and the heads of every model.

    A row: exact match, the same with the best heads ablated, F1 of the trained heads and of the best ones, how many of the best ones are found
    again, perplexity.
    """
    rows = [_row(Models(models), condition) for condition in models[0].measured]
    heads = {m.name: {name: [f"L{layer}H{head}" for layer, head in own] for name, own in m.heads.items() if len(own) <= 8} for m in models}
    return {"rows": rows, "heads": heads, "models": {m.name: dict(m.found) for m in models}, "questions": len(models[0].right("plain"))}
