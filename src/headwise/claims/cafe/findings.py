"""Findings about answers, from rows of right and wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwise.claims.cafe.answers import NO_EVIDENCE, NO_HOP, STAGED, Asked, overlap
from headwise.claims.cafe.declared import GATE
from headwise.claims.claim import Bound, Finding, Number
from headwise.claims.intervals import interval
from headwise.stats.paired import sign_flip_test

PAIRS = {  # claim -> what is right more often than what
    "stage1_above_direct": ("stage 1 only", "direct"),
    "stage1_above_random": ("stage 1 only", "stage 1 only, random heads"),
    "both_above_stage1": ("both stages", "stage 1 only"),
    "steering_above_direct": ("stage 2 only", "direct"),
    "best_last_above_best_first": ("stage 1 only", "stage 1 only, best first"),
    "wrong_candidates_hurt": ("stage 1 only", "steered to wrong passages"),
}
NAN = (math.nan, math.nan, math.nan)
Rows = Mapping[str, np.ndarray]


def gate_numbers(rows: Rows) -> dict[str, Number]:
    """What the plain answers must show before any other is asked for."""
    return {"right_directly": interval(rows["direct"]), "gain_over_no_passages": interval(rows["direct"] - rows["without passages"])}


def passed(rows: Rows) -> bool:
    """Whether the gate of the claims about answers is passed."""
    return all(Bound.read(text).met(gate_numbers(rows)) for text in GATE)


def answer_findings(rows: Rows, said: Sequence[Mapping[str, str]]) -> dict[str, Finding]:
    """Claims 3 to 6 and 9: name -> finding; without the further answers numbers are NaN, and the gate says why.

    Args:
        rows: Of `right_rows`.
        said: What they were made of.
    """
    gate = gate_numbers(rows)
    found = {claim: _difference(rows, one, other, gate) for claim, (one, other) in PAIRS.items()}
    return found | {
        "stage1_dominates": _dominates(rows, gate),
        "order": _order(rows, gate),
        "delta_curve": _curve(rows, gate),
        "infinite_delta_hurts": _infinite(rows, said, gate),
        "question_reads_evidence": _drop(rows, NO_EVIDENCE),
        "evidence_reads_no_evidence": _drop(rows, NO_HOP),
    }


def _change(rows: Rows, one: str, other: str) -> np.ndarray:
    """Paired difference of the questions for which both were asked; NaN if there is none."""
    if one not in rows or other not in rows:
        return np.array([np.nan])
    change = rows[one] - rows[other]
    change = change[~np.isnan(change)]
    return change if len(change) else np.array([np.nan])


def _interval(change: np.ndarray) -> tuple[float, float, float]:
    return NAN if np.isnan(change).any() else interval(change)


def _p(change: np.ndarray) -> float:
    return 1.0 if np.isnan(change).any() else sign_flip_test(change)


def _difference(rows: Rows, one: str, other: str, gate: dict[str, Number]) -> Finding:
    change = _change(rows, one, other)
    control = interval(rows[other]) if other in rows else NAN
    chosen = interval(rows[one]) if one in rows else NAN
    return Finding({"difference": _interval(change), "chosen": chosen, "control": control} | gate, _p(change))


def _dominates(rows: Rows, gate: dict[str, Number]) -> Finding:
    first, second = _change(rows, "stage 1 only", "direct"), _change(rows, "both stages", "stage 1 only")
    numbers: dict[str, Number] = {"difference": _interval(first - second), "stage1": _interval(first), "stage2": _interval(second)}
    return Finding(numbers | gate, _p(first - second))


def _order(rows: Rows, gate: dict[str, Number]) -> Finding:
    steps = {
        "best_last_minus_random": ("stage 1 only", "stage 1 only, random order"),
        "random_minus_best_first": ("stage 1 only, random order", "stage 1 only, best first"),
    }
    return Finding({name: _interval(_change(rows, *pair)) for name, pair in steps.items()} | gate)


def _curve(rows: Rows, gate: dict[str, Number]) -> Finding:
    top = "both stages"
    numbers: dict[str, Number] = {
        "rise": _interval(_change(rows, top, "stage 1 only")),
        "fall": _interval(_change(rows, top, f"{STAGED}50")),
    }
    return Finding(numbers | gate)


def _infinite(rows: Rows, said: Sequence[Mapping[str, str]], gate: dict[str, Number]) -> Finding:
    missed = np.array([float(one.get("evidence pointed at", "nan")) < 1 for one in said])
    if f"{STAGED}50" in rows and not missed.any():
        return Finding.none("the candidates hold all gold passages of every question")
    change = _change({name: row[missed] for name, row in rows.items()}, f"{STAGED}50", "stage 1 only")
    numbers: dict[str, Number] = {"difference": _interval(change), "questions": float(missed.sum())}
    return Finding(numbers | gate, _p(change))


def _drop(rows: Rows, hidden: str) -> Finding:
    """The gate is that of the questions for which something was hidden."""
    asked = ~np.isnan(rows[hidden]) if hidden in rows else np.ones(len(rows["direct"]), dtype=bool)
    gate = gate_numbers({name: row[asked] for name, row in rows.items()} if asked.any() else rows)
    change = _change(rows, "direct", hidden)
    numbers: dict[str, Number] = {"drop": _interval(change), "hidden": interval(_known(rows[hidden])) if hidden in rows else NAN}
    return Finding(numbers | gate, _p(change))


def _known(row: np.ndarray) -> np.ndarray:
    return np.asarray(row[~np.isnan(row)])


def answer_tables(rows: Rows, said: Sequence[Mapping[str, str]], asked: Sequence[Asked]) -> dict[str, Any]:
    """Condition -> share of right answers and F1 of words, with intervals."""
    out: dict[str, Any] = {}
    for name, row in rows.items():
        best = [max(overlap(one[name], a) for a in each.question.answers) for one, each in zip(said, asked, strict=True) if name in one]
        out[name] = {"questions": len(best), "right": interval(_known(row)), "F1": interval(best)}
    return out
