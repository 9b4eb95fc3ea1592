"""Numbers of the cells of `headwise.evaluation.sparse.measure_cells`, context by context, and what is the same in all measurements here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.claims.claim import Finding, Number
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, NotTestable
from headwise.evaluation.contexts import Context
from headwise.evaluation.sparse import RECENT, SINKS
from headwise.evaluation.sparse_rows import FULL, Row, mean_rows
from headwise.heads import HeadSet
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.stats.paired import bootstrap_mean, sign_flip_test

Values = NDArray[np.float64]
LENGTHS = (2048, 1024, 512)
LEAST = SINKS + RECENT + 4  # the smallest budget that leaves something to choose
STRONGEST = 8  # copy heads
PLACES = 5  # digits behind the point


class MissingError(Exception):
    """What a claim needs was not measured; the text says why."""


class Cells:
    """Cells of one length, by task, chooser and budget.

    Args:
        cells: As `measure_cells` gives them.
    """

    def __init__(self, cells: Sequence[Row]) -> None:
        self.rows = list(cells)
        self._own: dict[tuple[str, str, int | None], dict[int, Row]] = {}
        for cell in cells:
            self._own.setdefault((cell["task"], cell["chooser"], cell["budget"]), {})[cell["context"]] = cell

    def values(self, task: str, chooser: str, budget: int | None, name: str) -> Values:
        """[context] of one number. Raises `MissingError` if it was not measured."""
        found = [cell.get(name) for _, cell in sorted(self._own.get((task, chooser, budget), {}).items())]
        if not found or None in found:
            raise MissingError(f"{chooser} has no {name} on {task}")
        return np.array(found, dtype=np.float64)

    def full(self, task: str) -> Values:
        """[context]: scores of full attention. Raises `MissingError` if no context of the task fits into the model's positions."""
        if (task, FULL, None) not in self._own:
            raise MissingError(f"no context of {task} fits into the length that the model has positions for")
        return self.values(task, FULL, None, "score")

    def difference(self, task: str, one: str, other: str, budget: int, name: str) -> Finding:
        """A paired difference between two choosers, with its test; the gate's `full_score` where the task has scores."""
        gate: dict[str, Number] = {"full_score": interval(self.full(task))} if name == "score" else {}
        try:
            chosen, beside = (self.values(task, who, budget, name) for who in (one, other))
        except MissingError:
            if name == "score" and (task, one, budget) not in self._own:
                return Finding.none(f"the full model scores {gate['full_score'][0]:.2f} on {task}, so no chooser was run")  # type: ignore[index]
            raise
        numbers = {"difference": interval(chosen - beside), "chosen": interval(chosen), "control": interval(beside)}
        return Finding(numbers | gate, sign_flip_test(chosen - beside))

    def table(self) -> list[Row]:
        """Means over contexts, one row per task, chooser and budget."""
        kinds = {(cell["chooser"], cell["budget"]): None for cell in self.rows if cell["chooser"] != FULL}
        return [{name: rounded(value) for name, value in row.items()} for row in mean_rows(self.rows, list(kinds))]


def answered(claims: Mapping[str, Callable[[], Finding]]) -> dict[str, Finding]:
    """Findings of claims; one whose numbers are missing says why."""
    found = {}
    for key, measure in claims.items():
        try:
            found[key] = measure()
        except MissingError as why:
            found[key] = Finding.none(str(why))
    return found


def interval(values: Values) -> tuple[float, float, float]:
    """Mean over contexts with its 95 % interval."""
    mean, low, high = (round(value, PLACES) for value in bootstrap_mean(values))
    return mean, low, high


def rounded(value: Any) -> Any:
    """Numbers with a few digits, also in lists."""
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, PLACES) if isinstance(value, float) else value


def length_for(model: Model, most: int = LENGTHS[0]) -> int:
    """The longest context that is measured and fits into a model.

    Raises:
        NotTestable: None does, or the model has no layer with full attention.
    """
    if not model.heads.full_layers:
        raise NotTestable("needs a layer with full attention: there is nothing to choose in the others")
    found = next((length for length in LENGTHS if length <= min(most, model.positions or most)), None)
    if found is None:
        raise NotTestable(f"needs {LENGTHS[-1]} positions; the model has {model.positions}")
    return found


def budget_for(length: int, share: int) -> int:
    """One position in `share`, and at least what leaves something to choose."""
    return max(LEAST, length // share)


def drawn(draw: Callable[[], list[Context]]) -> list[Context]:
    """Contexts of a task; none where the model's positions or its tokenizer leave no room for it."""
    try:
        return draw()
    except HeadwiseError:
        return []


def strongest_copy_heads(bench: Bench) -> HeadSet | None:
    """The strongest copy heads; None if the model answers no detection needle."""
    try:
        found = copy_heads(bench)
    except NotTestable:
        return None
    count = int((~np.isnan(found.values)).sum())
    return found.top(min(STRONGEST, count))
