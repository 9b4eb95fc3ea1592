"""Cross-transfer: heads found by every detector, removed on every task.

Heads are removed (their output is 0) in all rows from the question on, the answer included; what stands in front is read by the whole model, once
for all sets of heads. The measure is the loss increase of the right answer in nats per token. Items count whose answer the whole model expects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.transfer.declared import NAMES, OWN
from headwise.claims.transfer.detectors import Found, find_all
from headwise.claims.transfer.tasks import Item, tasks
from headwise.evaluation.variants import random_sets
from headwise.heads.types import HeadSet
from headwise.runtime.knock_outs import variant_logprobs
from headwise.runtime.runner import prefill

DRAWS = 3  # layer-matched random sets per detector
EXPECTED = np.log(0.2)  # mean log-probability per token of an answer that the whole model expects
LEAST = 5  # items that a task needs


class Matrix(NamedTuple):
    """Loss increases of one task.

    Attributes:
        names: Of the sets of heads.
        values: [set, item] nats per token.
        asked: How many items there were; those that count are in `values`.
    """

    names: tuple[str, ...]
    values: np.ndarray
    asked: int

    def of(self, name: str) -> np.ndarray:
        """[item] loss increase without a set of heads; of random ones the mean over draws."""
        rows = [i for i, one in enumerate(self.names) if one == name]
        return np.asarray(self.values[rows].mean(axis=0))

    @property
    def testable(self) -> bool:
        """Whether enough items count."""
        return bool(self.values.shape[1] >= LEAST)


def sets_of(found: Mapping[str, Found], seed: int, task: str) -> tuple[tuple[str, ...], list[HeadSet]]:
    """Sets of heads for a task: of each detector its heads, random ones of the same layers, and, on its own task, those of its halves."""
    names, sets = [], []
    for name, one in found.items():
        drawn = random_sets(one.whole, one.scores, DRAWS, seed)
        halves = zip((f"{name}/a", f"{name}/b"), one.halves, strict=True) if OWN[name] == task else ()
        for label, heads in ((name, one.whole), *halves, *((f"{name}/random", d) for d in drawn)):
            names.append(label)
            sets.append(heads)
    return tuple(names), sets


def removed(bench: Bench, name: str, items: Sequence[Item], names: tuple[str, ...], sets: Sequence[HeadSet]) -> Matrix:
    """Loss increase of each item's answer without each set of heads."""
    digest = [[list(map(str, heads)) for heads in sets], [list(map(list, item)) for item in items]]
    cells = bench.cells(f"task-{name}", {"sets and items": digest})
    columns = []
    for number, item in enumerate(items):
        kept = cells.load(str(number))
        if kept is None:
            cells.save(str(number), {"logprobs": _logprobs(bench, item, sets)}, [])
            kept = cells.load(str(number))
        bench.report(number + 1, len(items), f"removing heads on {name}")
        if kept is not None:
            columns.append(kept[0]["logprobs"])
    table = np.stack(columns, axis=1)
    known = table[0] >= (-np.inf if name == "text" else EXPECTED)
    return Matrix(names, table[0, known] - table[1:, known], len(items))


def _logprobs(bench: Bench, item: Item, sets: Sequence[HeadSet]) -> np.ndarray:
    """[1 + sets] log-probability of the answer per token; the first is that of the whole model."""
    model = bench.model
    every = [HeadSet((), model.heads.shape, "no head"), *sets]
    with torch.no_grad(), attached(model.hf):
        past = full_cache(model.hf)
        prefill(model.hf, past, item.past)
        return np.asarray(variant_logprobs(model, past, item.rest, [item.answer], every)[:, 0].double()) / len(item.answer)


def share(matrix: Matrix, name: str, own: str) -> tuple[float, float, float]:
    """Loss increase without one set of heads over that without another, with an interval over items; NaN where the other costs nothing."""
    one, other = matrix.of(name), matrix.of(own)
    if other.mean() <= 0:
        return (float("nan"),) * 3
    rng = np.random.default_rng(0)
    draws = rng.integers(len(one), size=(2000, len(one)))
    below = other[draws].mean(axis=1)
    ratios = one[draws].mean(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return round(float(one.mean() / other.mean()), 4), round(float(low), 4), round(float(high), 4)


def overlaps(found: Mapping[str, Found]) -> dict[str, dict[str, float]]:
    """Share of its heads that each detector has in common with each other one; with itself: between its halves."""
    return {
        one: {
            other: round(len(set(a.halves[0]) & set(a.halves[1]) if one == other else set(a.whole) & set(b.whole)) / len(a.whole), 4)
            for other, b in found.items()
        }
        for one, a in found.items()
    }  # fmt: skip


def measure(bench: Bench) -> Measured:
    """Find, remove, and compare."""
    found, missing = find_all(bench)
    if not found:
        raise NotTestable("no detector finds heads: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    items = tasks(bench)
    matrices = {
        name: removed(bench, name, each, *sets_of(found, bench.seed, name)) for name, each in items.items() if not isinstance(each, str)
    }  # fmt: skip
    missing |= {f"task {name}": each for name, each in items.items() if isinstance(each, str)}
    findings = {f"transfer.{key}": one for key, one in claims(found, missing, matrices, NAMES).items()}
    return Measured(findings, details(found, missing, matrices))


def claims(
    found: Mapping[str, Found], missing: Mapping[str, str], matrices: Mapping[str, Matrix], names: Sequence[str]
) -> dict[str, Finding]:
    """All claims of the matrix that its detectors and tasks can answer."""
    out = {}
    for name in names:
        own = OWN[name]
        out[f"own.{name}"] = _own(name, own, found, missing, matrices)
        for other in names:
            if other != name and (OWN[other] == own or "copy" in (name, other)):
                out[f"cross.{name}.{other}"] = _cross(name, other, found, missing, matrices)
    out["spares_text"] = _spares(found, missing, matrices)
    out["one_kind"] = _one_kind(found, matrices, names)
    return out


def _absent(names: Sequence[str], task: str, missing: Mapping[str, str], matrices: Mapping[str, Matrix]) -> str:
    """Why a claim about some detectors on a task cannot be tested; empty if it can."""
    for name in names:
        if name in missing:
            return f"the detector {name} finds no heads: {missing[name]}"
    if task not in matrices:
        return f"the task {task} cannot be asked: {missing[f'task {task}']}"
    matrix = matrices[task]
    return "" if matrix.testable else f"the model expects the answer of {matrix.values.shape[1]} of {matrix.asked} items of {task}"


def _own(name: str, task: str, found: Any, missing: Mapping[str, str], matrices: Mapping[str, Matrix]) -> Finding:
    why = _absent([name], task, missing, matrices)
    if why:
        return Finding.none(why)
    matrix = matrices[task]
    drop, random = matrix.of(name), matrix.of(f"{name}/random")
    return Finding({"increase": interval(drop), "random": interval(random), "difference": interval(drop - random), "items": float(len(drop))})


def _cross(name: str, other: str, found: Any, missing: Mapping[str, str], matrices: Mapping[str, Matrix]) -> Finding:
    """Heads of `name`, removed on the task of `other`."""
    task = OWN[other]
    why = _absent([name, other], task, missing, matrices)
    if why:
        return Finding.none(why)
    matrix = matrices[task]
    halves = min(share(matrix, f"{other}/a", other)[0], share(matrix, f"{other}/b", other)[0])
    common = len(set(found[name].whole) & set(found[other].whole)) / len(found[other].whole)
    heads = found[other].scores.values
    numbers: dict[str, Number] = {
        "share": share(matrix, name, other),
        "own_increase": interval(matrix.of(other)),
        "random_share": share(matrix, f"{name}/random", other),
        "halves_share": halves,
        "common_heads": round(common, 4),
        "common_by_chance": round(len(found[name].whole) / int((~np.isnan(heads)).sum()), 4),
    }
    return Finding(numbers)


def _spares(found: Any, missing: Mapping[str, str], matrices: Mapping[str, Matrix]) -> Finding:
    why = _absent(["copy"], "needle", missing, matrices) or _absent(["copy"], "text", missing, matrices)
    if why:
        return Finding.none(why)
    values = matrices["text"].of("copy")
    needle = interval(matrices["needle"].of("copy"))
    ratio = round(float(values.mean()) / max(needle[0], 1e-9), 4)
    return Finding({"text_increase": interval(values), "needle_increase": needle, "ratio": ratio})


def _one_kind(found: Mapping[str, Found], matrices: Mapping[str, Matrix], names: Sequence[str]) -> Finding:
    """Shares of all pairs of detectors."""
    pairs = [(a, b) for a in names for b in names if a != b and {a, b} <= found.keys() and OWN[b] in matrices and matrices[OWN[b]].testable]
    shares = [share(matrices[OWN[b]], a, b)[0] for a, b in pairs]
    known = [one for one in shares if one == one]
    if len(known) < 2:
        return Finding.none("fewer than two pairs of detectors can be compared")
    own = [len(set(found[a].whole) & set(found[b].whole)) / len(found[b].whole) for a, b in combinations(found, 2)]
    numbers = {"least_share": min(known), "median_share": float(np.median(known)), "pairs": float(len(known))}
    return Finding(numbers | {"mean_common_heads": float(np.mean(own)) if own else float("nan")})


def details(found: Mapping[str, Found], missing: Mapping[str, str], matrices: Mapping[str, Matrix]) -> dict[str, Any]:
    """The figure: loss increase per token, detectors x tasks, with random heads and halves beside them; overlaps of the lists."""
    increases = {
        task: {name: list(interval(matrix.of(name))) for name in dict.fromkeys(matrix.names)} if matrix.testable else None
        for task, matrix in matrices.items()
    }
    return {
        "heads": {name: list(map(str, one.whole)) for name, one in found.items()},
        "missing": dict(missing),
        "items": {task: [int(matrix.values.shape[1]), matrix.asked] for task, matrix in matrices.items()},
        "increases": increases,
        "overlap": overlaps(found),
        "by_chance": {name: round(len(one.whole) / int((~np.isnan(one.scores.values)).sum()), 4) for name, one in found.items()},
    }
