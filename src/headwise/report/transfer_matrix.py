"""The matrix of the ledger's experiment `transfer` as tables: heads found by each detector, removed on each task. Plain data in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import reason


class Cell(NamedTuple):
    """What one detector's heads are worth on one task: loss increase of the right answer without them, in nats per token.

    Attributes:
        mean: Over items.
        low: Lower end of its 95 % interval.
        high: Upper end.
        random: Mean without random heads of the same layers.
        shade: Share of the largest increase of the task, in [0, 1].
        own: Whether the paper names its heads by this task.
    """

    mean: float
    low: float
    high: float
    random: float
    shade: float
    own: bool

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above what random heads do."""
        return self.low > self.random


@dataclass(frozen=True)
class TransferMatrix:
    """Both tables of one model.

    Attributes:
        detectors: Those that found heads: the rows.
        tasks: Those that the model can do: the columns. Task -> items that count, of how many.
        cells: [detector][task].
        random: Task -> mean increase without random heads, over detectors.
        shades: Task -> its share of the largest increase of the task.
        overlap: [detector][detector] share of the first's heads that the other one finds too; with itself: between halves of its items.
        chance: Detector -> share of heads in common with a list of random heads.
        absent: Other detectors and tasks -> why they are absent.
    """

    detectors: tuple[str, ...]
    tasks: Mapping[str, tuple[int, int]]
    cells: Mapping[str, Mapping[str, Cell]]
    random: Mapping[str, float]
    shades: Mapping[str, float]
    overlap: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, float]
    absent: Mapping[str, str]

    @property
    def by_chance(self) -> str:
        """Share of heads in common with a random list, in words: `0.06`, or `0.05 to 0.07`."""
        low, high = decimals(min(self.chance.values())), decimals(max(self.chance.values()))
        return low if low == high else f"{low} to {high}"


def read_matrix(details: Mapping[str, Any], own: Mapping[str, str], name: str = "") -> TransferMatrix:
    """The tables of a result.

    Args:
        details: Of a result of the experiment `transfer`.
        own: Detector -> the task by which its paper names its heads.
        name: Of the model, for the message of an error.

    Returns:
        Tables of the detectors that found heads and the tasks that can be tested.

    Raises:
        HeadwiseError: The details hold no matrix.
    """
    try:
        detectors = tuple(details["heads"])
        if not detectors:
            raise ValueError("no detector")
        known = {task: row for task, row in details["increases"].items() if row}
        items = {task: (int(some), int(every)) for task, (some, every) in details["items"].items()}
        columns = {task: _column(row, detectors, task, own) for task, row in known.items()}
        few = {f"task {task}": f"the model expects the answer of {items[task][0]} of {items[task][1]} items" for task in items if task not in known}
        return TransferMatrix(
            detectors,
            {task: items[task] for task in known},
            {name: {task: columns[task][0][name] for task in known} for name in detectors},
            {task: columns[task][1] for task in known},
            {task: columns[task][2] for task in known},
            {one: {other: float(details["overlap"][one][other]) for other in detectors} for one in detectors},
            {name: float(details["by_chance"][name]) for name in detectors},
            {str(name): str(why) for name, why in details["missing"].items()} | few,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        about = f" of {name}" if name else ""
        raise HeadwiseError(f"the result of the experiment transfer{about} holds no matrix ({reason(error)}); measure it again") from error


def _column(row: Mapping[str, Any], detectors: tuple[str, ...], task: str, own: Mapping[str, str]) -> tuple[dict[str, Cell], float, float]:
    """Cells of one task, the mean of random heads, and its shade."""
    ends = {name: tuple(map(float, row[name])) for name in detectors}
    controls = {name: float(row[f"{name}/random"][0]) for name in detectors}
    random = sum(controls.values()) / len(controls)
    most = max(random, *(mean for mean, *_ in ends.values()))

    def shade(value: float) -> float:
        return min(1.0, max(0.0, value / most)) if most > 0 else 0.0

    cells = {name: Cell(mean, low, high, controls[name], shade(mean), own.get(name) == task) for name, (mean, low, high) in ends.items()}
    return cells, random, shade(random)


def decimals(value: float) -> str:
    """A number for a small cell: `0.43`, `12.3`; no minus in front of 0."""
    places = 2 if abs(value) < 9.995 else 1
    return f"{round(value, places) + 0:.{places}f}"
