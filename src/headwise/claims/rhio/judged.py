"""What the registered rules need of what trained models said. Questions of several models are paired: the mean over models is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.rhio.questions import Asked
from headwise.evaluation.grounded import judged_answer
from headwise.evaluation.support import SupportChecker
from headwise.prompts.mentions import mentions
from headwise.stats.paired import bootstrap_mean, sign_flip_test

Values = np.ndarray
NO_PAIRS = "no unfaithful answer is left to learn from, or the control leaves too few"


class Spoken(NamedTuple):
    """One model and what was said.

    Attributes:
        name: Of the model.
        asked: Prompts that are judged.
        said: Condition -> texts, of the first so many prompts.
        tables: Source of unfaithful answers -> what is told of them.
        heads: That were taken away.
        found_again: Training -> how many of them are the best ones afterwards.
    """

    name: str
    asked: Sequence[Asked]
    said: Mapping[str, Sequence[str]]
    tables: Mapping[str, Mapping[str, Any]]
    heads: Sequence[str]
    found_again: Mapping[str, int]


class Judged(NamedTuple):
    """[asked] numbers of one condition."""

    value: Values
    words: Values
    coverage: Values
    labels: Counter[str]


def judge_texts(found: Spoken, condition: str, checker: SupportChecker, cell: str = "") -> Judged:
    """Score the texts of a condition, of one cell or of all."""
    both = [(one, text) for one, text in zip(found.asked, found.said[condition], strict=False) if not cell or one.cell == cell]
    labels: Counter[str] = Counter()
    values, covered = [], []
    for one, text in both:
        if one.cell == "support":
            told = judged_answer(checker, text, one.record)
            labels.update(told["labels"])
            values.append(told["support"] or 0.0)
            covered.append(told["coverage"])
        else:
            right = mentions(text, one.record.facts) and not (one.wrong and mentions(text, (one.wrong,)))
            values.append(float(right))
            covered.append(float(right))
    return Judged(np.asarray(values), np.asarray([len(text.split()) for _, text in both], float), np.asarray(covered), labels)


class Judge:
    """Comparisons over the questions of one or several models."""

    def __init__(self, models: Sequence[Spoken], checker: SupportChecker) -> None:
        self.models, self.checker = models, checker

    def has(self, *conditions: str) -> bool:
        """Whether every model has them."""
        return all(name in found.said for found in self.models for name in conditions)

    def values(self, condition: str, cell: str = "", kind: str = "value") -> Values:
        """[model, question]."""
        return np.stack([getattr(judge_texts(found, condition, self.checker, cell), kind) for found in self.models])

    def worst(self, condition: str, cell: str = "") -> float:
        """Mean over questions of the worst model; NaN without questions."""
        values = self.values(condition, cell)
        return float(values.mean(axis=1).min()) if values.shape[1] else float("nan")

    def test(self, more: str, less: str, gate: Mapping[str, Number], cell: str = "", missing: str = NO_PAIRS) -> Finding:
        """Whether one condition is better than another."""
        if not self.has(more, less):
            return Finding.none(missing)
        a, b = self.values(more, cell), self.values(less, cell)
        few = min(a.shape[1], b.shape[1])
        if not few:
            return Finding.none(f"no question of the kind {cell}")
        return compared(a[:, :few], b[:, :few], gate)

    def pairs(self) -> dict[str, Number]:
        """The worst model's pairs, and by how much references are better supported than unfaithful answers."""
        tables = [found.tables["heads"] for found in self.models]
        return {"pairs": float(min(table["pairs"] for table in tables)), "gap": round(min(table["gap"] for table in tables), 4)}

    def left(self, source: str) -> dict[str, Number]:
        """Pairs that a control leaves in the worst model."""
        return {f"{source}_pairs": float(min(found.tables[source]["pairs"] for found in self.models))}


def interval(values: Values) -> tuple[float, float, float]:
    """Mean of [model, question] over models with its interval over questions."""
    mean, low, high = bootstrap_mean(values.mean(axis=0))
    return round(mean, 4), round(low, 4), round(high, 4)


def compared(more: Values, less: Values, gate: Mapping[str, Number], name: str = "difference") -> Finding:
    """[model, question] values: their difference with its interval and p, and the share of models with its sign."""
    change = more - less
    each = np.sign(change.mean(axis=1))
    same = float((each == np.sign(change.mean())).mean())
    numbers: dict[str, Number] = {name: interval(change), "chosen": interval(more), "control": interval(less), "same_sign": same}
    return Finding(numbers | dict(gate), sign_flip_test(change.mean(axis=0)))


def shared(judge: Judge, cell: str, start: Mapping[str, Number]) -> dict[str, Finding]:
    """The claims that every set has."""
    gate = {**start, **judge.pairs()}
    return {
        "tokens": judge.test("heads.0", "heads.neg", gate, cell),
        "tuning": judge.test("heads.0", "plain", gate, cell),
        "decoding": judge.test("heads.0.2", "heads.0", gate, cell),
        "whole": judge.test("heads.0.2", "plain", gate, cell),
        "not_random": judge.test("heads.0.2", "random.0.2", gate | judge.left("random"), cell, _few("random", judge)),
        "not_swap": judge.test("heads.0.2", "swap.0.2", gate | judge.left("swap"), cell, _few("swap", judge)),
        "training_free": judge.test("plain.heads", "plain", start, cell),
    }


def _few(source: str, judge: Judge) -> str:
    return f"{NO_PAIRS} ({source}: {judge.left(source)[f'{source}_pairs']:g} pairs, 40 are needed)"


def real_findings(models: Sequence[Spoken], checker: SupportChecker) -> dict[str, Finding]:
    """Key -> finding, of short answers."""
    judge = Judge(models, checker)
    start: dict[str, Number] = {"start": round(judge.worst("start", "correction"), 4)}
    heads, chance = (np.asarray(models[0].tables[source]["right"], float)[None] for source in ("heads", "random"))
    known: dict[str, Number] = {"known": float(sum(one.cell == "resistance" for one in models[0].asked)), **judge.pairs()}
    if judge.has("plain"):
        known["resisted"] = round(judge.worst("plain", "resistance"), 4)
    found = shared(judge, "correction", start) | {
        "heads_away": compared(chance, heads, start),
        "closed": judge.test("plain.closed", "plain", start, "correction"),
        "resistance": judge.test("plain", "heads.0.2", known, "resistance"),
    }
    return {f"rhio.smollm2.{key}": one for key, one in found.items()}


def details(models: Sequence[Spoken], checker: SupportChecker) -> dict[str, Any]:
    """One row per condition and cell, and what is told of heads and of unfaithful answers."""
    judge, rows = Judge(models, checker), []
    for condition in models[0].said:
        for cell in dict.fromkeys(one.cell for one in models[0].asked):
            if judge.has(condition) and judge.values(condition, cell).shape[1]:
                rows.append(_row(judge, condition, cell))
    about = {}
    for found in models:
        sources = {source: {key: value for key, value in table.items() if key != "right"} for source, table in found.tables.items()}
        about[found.name] = {"heads": list(found.heads), "found_again": dict(found.found_again), "sources": sources}
    return {"rows": rows, "models": about}


def _row(judge: Judge, condition: str, cell: str) -> dict[str, Any]:
    values = judge.values(condition, cell)
    mean, low, high = interval(values)
    told = {kind: float(judge.values(condition, cell, kind).mean()) for kind in ("words", "coverage")}
    labels = sum((judge_texts(found, condition, judge.checker, cell).labels for found in judge.models), Counter[str]())
    row = {"condition": condition, "cell": cell, "questions": values.shape[1], "mean": mean, "low": low, "high": high}
    return row | told | {"labels": dict(sorted(labels.items()))}
