"""Mean rows over contexts, with intervals, of what was measured context by context of sparse decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwise.stats.paired import bootstrap_mean

Row = dict[str, Any]
ABOUT = ("task", "length", "context", "chooser", "budget")  # what a cell is of; the rest of it are numbers
FULL = "full"  # the chooser of cells and rows of full attention
WITH_INTERVAL = ("score", "agreement", "mass", "mass_heads", "recall", "agreement_greedy", "equal_greedy")


def mean_rows(cells: Sequence[Row], rivals: Sequence[tuple[str, int]]) -> list[Row]:
    """One row per task, length and chooser with its budget, full attention first.

    Args:
        cells: As `measure_cells` gives them.
        rivals: (chooser, budget); those without a cell of a task could not be tested on it.

    Returns:
        Means over contexts of all numbers (lists by place), `n` and `gate` ("passed" or "not testable"); of text `perplexity` and
        `perplexity_ratio` in place of losses; beside each quality a 95 % bootstrap interval over contexts as
        `<quality>_interval`, [low, high], None with a single context.
    """
    rows = list[Row]()
    for task, length in dict.fromkeys((cell["task"], cell["length"]) for cell in cells):
        own = [cell for cell in cells if (cell["task"], cell["length"]) == (task, length)]
        each = {which: [cell for cell in own if (cell["chooser"], cell["budget"]) == which] for which in ((FULL, None), *rivals)}
        passed = any(found for which, found in each.items() if which[0] != FULL)
        about = {"task": task, "length": length, "n": len(each[FULL, None]), "gate": "passed" if passed else "not testable"}
        for (chooser, budget), found in each.items():
            rows.append(about | {"chooser": chooser, "budget": budget} | (_row(found) if found else {}))
    return rows


def mean_numbers(cells: Sequence[Mapping[str, Any]]) -> Row:
    """Means of all numbers, of lists place by place; what is None is left out, and stays None where nothing is known."""
    names = dict.fromkeys(name for cell in cells for name in cell if name not in ABOUT)
    return {name: _mean([cell.get(name) for cell in cells]) for name in names}


def _row(cells: Sequence[Row]) -> Row:
    """A perplexity is the exponential of the mean loss; its ratio to that of the full model has the interval of the paired difference."""
    found = mean_numbers(cells)
    found |= {f"{name}_interval": _interval([cell.get(name) for cell in cells]) for name in WITH_INTERVAL if name in found}
    if "loss" in found:
        found["perplexity"] = float(np.exp(found.pop("loss")))
        found["perplexity_ratio"] = found["perplexity"] / float(np.exp(found.pop("full_loss")))
        logs = _interval([cell["loss"] - cell["full_loss"] for cell in cells])
        found["perplexity_ratio_interval"] = None if logs is None else np.exp(logs).tolist()
    return found


def _mean(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], list):
        return [_mean(column) for column in zip(*known, strict=True)]
    return float(np.mean(known)) if known else None


def _interval(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return list(bootstrap_mean(np.array(known))[1:]) if len(known) > 1 else None
