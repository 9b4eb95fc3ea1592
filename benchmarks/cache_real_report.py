"""Tables and verdicts of cache_real.py from the contexts that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from registered import CLAIMS, LEVEL, verdict

from headwise.runtime.rundir import MARKER, RunDirectory
from headwise.stats.paired import benjamini_hochberg, bootstrap_mean, sign_flip_test

Row = dict[str, Any]
NEEDLE, FEW = ("needle", 2048), 0.02
BUDGETED = ("streamingllm", "random", "snapkv", "pyramidkv", "adakv", "headkv", "headkv, released form", "compresskv")
TABLE_METHODS = ("snapkv", "adakv", "pyramidkv", "compresskv")
CELLS = [("inside", 0.03), ("inside", 0.05), ("inside", 0.1), ("outside", 0.03), ("outside", 0.05), ("outside", 0.1)]


class Measured:
    """Values of every context by task, length, place of the question, method and budget."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            key = (row["task"], row["length"], row["question"], row["method"], row["budget"])
            self.rows.setdefault(key, []).append(row)

    def values(self, task: tuple[str, int], place: str, method: str, budget: float | None, name: str = "exact") -> np.ndarray:
        """One value per context, in the order in which they were measured; empty if nothing was."""
        return np.array([row[name] for row in self.rows.get((*task, place, method, budget), [])], dtype=np.float64)

    def gate(self, task: tuple[str, int], least: float) -> Row:
        """What the full cache answers."""
        found = self.values(task, "outside", "full", None)
        if not len(found):
            return {"task": task[0], "length": task[1], "n": 0, "passed": False}
        mean, low, high = bootstrap_mean(found)
        measured = {"n": len(found), "exact": mean, "low": low, "high": high, "least": least}
        return {"task": task[0], "length": task[1]} | measured | {"passed": bool(mean >= least)}


class Test:
    """A paired difference of one claim; p is corrected once all are known."""

    def __init__(self, claim: str, what: str, differences: np.ndarray, alternative: str = "two-sided") -> None:
        self.claim, self.what, self.corrected = claim, what, 1.0
        self.mean, self.low, self.high = bootstrap_mean(differences)
        self.p = sign_flip_test(differences, alternative)

    def row(self) -> Row:
        return {
            "claim": self.claim, "what": self.what, "mean": self.mean, "low": self.low, "high": self.high, "p": self.p, "corrected": self.corrected
        }  # fmt: skip


def report(folder: Path) -> Row:
    """Everything as plain data."""
    measured = Measured(read(folder))
    gates = {
        "needle": measured.gate(NEEDLE, 0.8), "needle 4096": measured.gate(("needle", 4096), 0.8),
        **{task: measured.gate((task, 2048), 0.3) for task in ("key_value", "kv-retrieval", "extraction")},
        "extraction 1024": measured.gate(("extraction", 1024), 0.3),
    }  # fmt: skip
    tests, missing = all_tests(measured, gates)
    for test, corrected in zip(tests, benjamini_hochberg([test.p for test in tests]) if tests else [], strict=True):
        test.corrected = float(corrected)
    own = [claim.key for claim in CLAIMS if claim.key.startswith("cache.")]
    judged = {key: None if key in missing else judge(key, measured, gates, tests) for key in own}
    return {
        "gates": gates,
        "verdicts": {key: "not measured" if key in missing else verdict(holds) for key, holds in judged.items()},
        "tests": [test.row() for test in tests],
        "table": table(measured),
        "weights": "Q4_1, dequantised",
    }


def read(folder: Path) -> list[Row]:
    """Rows of all finished contexts; where a context was measured for the gate alone and with all methods, the latter counts."""
    import json

    description = json.loads((folder / MARKER).read_text("utf-8"))["description"]
    cells, found = RunDirectory(folder, description), {}
    for path in sorted(folder.glob("*.npz")):  # `all` comes before `full`
        cell = cells.load(path.stem)
        if cell is not None:
            found.setdefault(path.stem.replace("-full-", "-all-"), cell[1])
    return [row for rows in found.values() for row in rows]


def against(measured: Measured, claim: str, task: tuple[str, int], place: str, one: Any, other: Any, name: str = "exact") -> Test:
    """one, other: (method, budget)."""
    differences = measured.values(task, place, *one, name) - measured.values(task, place, *other, name)
    return Test(claim, f"{task[0]} {task[1]}, question {place}: {name} of {said(one)} - {said(other)}", differences)


def said(which: tuple[str, float | None]) -> str:
    return which[0] if which[1] is None else f"{which[0]} {which[1]:.0%}"


def all_tests(measured: Measured, gates: dict[str, Row]) -> tuple[list[Test], set[str]]:
    """Those of claims whose gate passed, and claims for which something was not measured."""
    found: list[Test] = []
    missing: set[str] = set()

    def add(claim: str, task: tuple[str, int], place: str, one: Any, other: Any, name: str = "exact") -> None:
        if len(measured.values(task, place, *one)):
            found.append(against(measured, f"cache.{claim}", task, place, one, other, name))
        else:
            missing.add(f"cache.{claim}")

    if gates["needle"]["passed"]:
        for other in ("random", "streamingllm", "snapkv", "pyramidkv", "adakv"):
            add("compresskv_first", NEEDLE, "inside", ("compresskv", 0.1), (other, 0.1))
        for size in (0.05, 0.1):
            add("compresskv_survival", NEEDLE, "inside", ("compresskv", size), ("snapkv", size), "survival")
        for method in ("snapkv", "compresskv"):
            add("question_outside", NEEDLE, "outside", (method, 0.1), ("random", 0.1), "survival")
        for place, size in CELLS:
            add("headkv_small", NEEDLE, place, ("headkv", size), ("snapkv", size))
        for claim, method in (("duo_two_points", "duoattention"), ("zigzag_two_points", "zigzag")):
            for length in (2048, 4096) if gates["needle 4096"]["passed"] else (2048,):
                for place in ("inside", "outside"):
                    add(claim, ("needle", length), place, (method, None), ("full", None))
    for claim, task in (("tables_fail", "key_value"), ("real_tables_fail", "kv-retrieval")):
        if gates[task]["passed"]:
            for method in TABLE_METHODS:
                add(claim, (task, 2048), "inside", (method, 0.2), ("full", None))
    for claim, gate, length in (("many_lookups", "extraction", 2048), ("many_lookups_short", "extraction 1024", 1024)):
        if gates[gate]["passed"]:
            for method in near_lossless(measured, length):
                add(claim, ("extraction", length), "inside", (method, 0.2), ("full", None))
    return found, missing


def near_lossless(measured: Measured, length: int) -> list[str]:
    task = ("needle", length)
    full = measured.values(task, "inside", "full", None)
    return (
        []
        if not len(full)
        else [m for m in BUDGETED if m != "random" and (measured.values(task, "inside", m, 0.2) - full).mean() >= -0.05]
    )


def judge(key: str, measured: Measured, gates: dict[str, Row], tests: Sequence[Test]) -> bool | None:
    """By the registered rule; None: the gate failed."""
    own = [test for test in tests if test.claim == key]
    gate = {
        "tables_fail": "key_value",
        "real_tables_fail": "kv-retrieval",
        "many_lookups": "extraction",
        "many_lookups_short": "extraction 1024",
    }
    if not gates[gate.get(key.partition(".")[2], "needle")]["passed"]:
        return None
    rules: dict[str, Callable[[], bool]] = {
        "cache.compresskv_first": lambda: all(t.mean >= 0 for t in own[1:]) and own[0].mean > 0 and own[0].corrected < LEVEL,
        "cache.compresskv_survival": lambda: all(t.mean > 0 and t.corrected < LEVEL for t in own),
        "cache.question_outside": lambda: all(t.mean <= 0.05 for t in own),
        "cache.headkv_small": lambda: headkv_first(measured) and any(t.mean > 0 and t.corrected < LEVEL for t in own),
        "cache.duo_two_points": lambda: all(t.mean >= -FEW for t in own),
        "cache.zigzag_two_points": lambda: all(t.mean >= -FEW for t in own),
        "cache.tables_fail": lambda: all(t.mean <= -0.3 and t.corrected < LEVEL for t in own),
        "cache.real_tables_fail": lambda: all(t.mean <= -0.3 and t.corrected < LEVEL for t in own),
        "cache.many_lookups": lambda: bool(own) and all(t.mean <= -0.1 for t in own),
        "cache.many_lookups_short": lambda: bool(own) and all(t.mean <= -0.1 for t in own),
    }
    return rules[key]()


def headkv_first(measured: Measured) -> bool:
    for place, size in CELLS:
        means = {method: measured.values(NEEDLE, place, method, size).mean() for method in BUDGETED if "released" not in method}
        if means["headkv"] < max(means.values()):
            return False
    return True


def table(measured: Measured) -> list[Row]:
    """One row per cell, with its interval over contexts and the difference to the full cache on the same contexts."""
    found = []
    for (task, length, place, method, budget), rows in measured.rows.items():
        values = np.array([row["exact"] for row in rows])
        full = measured.values((task, length), place, "full", None)
        exact, difference = bootstrap_mean(values), bootstrap_mean(values - full)
        survival = [row["survival"] for row in rows if row["survival"] is not None]
        found.append(
            {
                "task": task, "length": length, "question": place, "method": method, "budget": budget, "n": len(rows),
                "exact": exact.mean, "low": exact.low, "high": exact.high, "draws": by_draw(rows),
                "difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high,
                "survival": float(np.mean(survival)) if survival else None,
                "held": float(np.mean([row["bytes"] / row["bytes_full"] for row in rows])),
                "tokens": float(np.mean([row["tokens"] for row in rows])),
            }
        )  # fmt: skip
    return found


def by_draw(rows: Sequence[Row]) -> list[float]:
    """Mean of each draw."""
    return [
        float(np.mean([row["exact"] for row in rows if row["draw"] == draw])) for draw in sorted({row["draw"] for row in rows})
    ]
