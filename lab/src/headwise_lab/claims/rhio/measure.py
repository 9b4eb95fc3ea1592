"""All trainings of three lab models, and what their answers say about the claims."""

from __future__ import annotations

from collections import Counter

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.claims.rhio.judged import NO_PAIRS, Judge, compared, details, interval, judge_texts, shared
from headwise.claims.rhio.questions import Asked, Questions
from headwise.claims.rhio.trained import DRAWS, Run, Sizes, quick
from headwise.train.options import Tuning
from headwise_lab.claims.lab_models import benches
from headwise_lab.faithful import ExactChecker, grounded_records

ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0)
WRONG = ("fabricated", "mis_combined", "unreadable")
SIZES = Sizes(Tuning(steps=300, batch=8, accumulate=1, rate=1e-3, length=400, save_every=50), 150, 48, ALPHAS, 256, early=30)


def questions(bench: Bench) -> Questions:
    """Answers in sentences of the micro-world."""
    judge, train = bench.pick((120, 800), (8, 16))
    asked = [Asked(record, "support") for record in grounded_records(judge, 42, "test", asked=1)]
    return Questions(grounded_records(train, 41, "train", asked=1), lambda _: asked, [], ExactChecker())


def measure(bench: Bench) -> Measured:
    """All trainings of each of three models."""
    given = questions(bench)
    models = [Run(one, given, bench.pick(SIZES, quick(SIZES))).result() for one in benches(bench)]
    return Measured(findings(Judge(models, given.checker)), details(models, given.checker))


def findings(judge: Judge) -> dict[str, Finding]:
    """Key -> finding."""
    start: dict[str, Number] = {"start": round(judge.worst("start"), 4)}
    gate = start | judge.pairs()
    found = shared(judge, "support", start) | doses(judge, start) | {"errors": errors(judge, start), "mode": mode(judge, start)}
    found["plausibility"] = judge.test("heads.2.cut", "heads.2", gate, "support")
    found |= {"alpha": alpha(judge, gate), "length": length(judge, gate)}
    return {f"rhio.lab.{key}": one for key, one in found.items()}


def doses(judge: Judge, start: dict[str, Number]) -> dict[str, Finding]:
    """What a tenth of the heads costs, and what random ones cost."""
    tenth = len(judge.models[0].heads)
    away = judge.values(f"without.{tenth}.top")
    whole = judge.values("start")[:, : away.shape[1]]
    chance = np.mean([judge.values(f"without.{tenth}.random-{seed}") for seed in range(DRAWS)], axis=0)
    lost = round(float((whole - away).mean() / whole.mean()), 4) if whole.mean() else float("nan")
    return {"dose": compared(whole, away, start | {"share_lost": lost}, "loss"), "dose_control": Finding({"loss": interval(whole - chance), **start})}


def errors(judge: Judge, start: dict[str, Number]) -> Finding:
    """Distances to an under-trained model, of the model where swapped answers are least farther."""
    pairs = []
    for found in judge.models:
        natural = judge_texts(found, "early", judge.checker).labels
        own = judge_texts(found, f"without.{len(found.heads)}.top", judge.checker).labels
        pairs.append((jensen_shannon(own, natural), jensen_shannon(Counter(found.tables["swap"]["labels"]), natural)))
    own_distance, swap = min(pairs, key=lambda pair: pair[1] - pair[0])
    told = "; ".join(f"{found.name}: {own:.3f}, swapped {other:.3f}" for found, (own, other) in zip(judge.models, pairs, strict=True))
    return Finding({"swap_minus_own": round(swap - own_distance, 4), "own": own_distance, **start}, note=told)


def jensen_shannon(a: Counter[str], b: Counter[str]) -> float:
    """Distance of the types of wrong sentences, in [0, 1]."""
    p, q = (np.asarray([one[name] for name in WRONG], float) / max(1, sum(one[name] for name in WRONG)) for one in (a, b))
    middle = (p + q) / 2
    parts = [float(sum(x * np.log2(x / m) for x, m in zip(one, middle, strict=True) if x > 0)) for one in (p, q)]
    return round(float(np.sqrt(max(0.0, sum(parts) / 2))), 4)


def mode(judge: Judge, start: dict[str, Number]) -> Finding:
    """Shares of fabricated sentences under two modes, of the model where they differ least in the claimed direction."""
    shares = []
    for found in judge.models:
        names = (f"without.{len(found.heads)}.top", "uniform")
        shares.append([share(judge_texts(found, name, judge.checker).labels) for name in names])
    told = "; ".join(f"{found.name}: {zero:.3f}, uniform {other:.3f}" for found, (zero, other) in zip(judge.models, shares, strict=True))
    return Finding({"zero_minus_uniform": round(min(zero - other for zero, other in shares), 4), **start}, note=told)


def share(labels: Counter[str]) -> float:
    """Share of fabricated ones among wrong sentences."""
    return round(labels["fabricated"] / max(1, sum(labels[name] for name in WRONG)), 4)


def alpha(judge: Judge, gate: dict[str, Number]) -> Finding:
    """Support over weights of the contrast."""
    names = {value: f"heads.{value:g}" for value in (0.0, *ALPHAS)}
    if not judge.has(*names.values()):
        return Finding.none(NO_PAIRS)
    curve = {value: float(judge.values(name).mean()) for value, name in names.items()}
    small, large = max(curve[value] for value in (0.1, 0.2, 0.5)), max(curve[value] for value in (1.0, 2.0))
    numbers = {"small_minus_none": small - curve[0.0], "small_minus_large": small - large, "two_minus_none": curve[2.0] - curve[0.0]}
    told = ", ".join(f"alpha {value:g}: {support:.3f}" for value, support in curve.items())
    return Finding({name: round(value, 6) for name, value in numbers.items()} | gate, note=told)


def length(judge: Judge, gate: dict[str, Number]) -> Finding:
    """The gain in support at equal length: the intercept of a regression on the change in words."""
    if not judge.has("heads.0.2", "plain"):
        return Finding.none(NO_PAIRS)
    gain = (judge.values("heads.0.2") - judge.values("plain")).mean(axis=0)
    words = (judge.values("heads.0.2", "", "words") - judge.values("plain", "", "words")).mean(axis=0)
    rng = np.random.default_rng(0)
    draws = [intercept(words[pick], gain[pick]) for pick in rng.integers(0, len(gain), (2000, len(gain)))]
    low, high = np.quantile(draws, [0.025, 0.975])
    covered = float((judge.values("heads.0.2", "", "coverage") - judge.values("plain", "", "coverage")).mean())
    ends = round(intercept(words, gain), 4), round(float(low), 4), round(float(high), 4)
    numbers: dict[str, Number] = {"intercept": ends, "coverage": round(covered, 4)}
    return Finding(numbers | gate, note=f"{words.mean():+.2f} words")


def intercept(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line; the mean of y where x does not vary."""
    centred = x - x.mean()
    square = float((centred**2).sum())
    return float(y.mean() - x.mean() * (centred * y).sum() / square) if square else float(y.mean())
