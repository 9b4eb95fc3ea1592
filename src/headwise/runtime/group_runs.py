"""A needle task run group by group; with a run directory, finished groups are not run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.progress import Report
from headwise.models.model import Model
from headwise.prompts.grid import Group, Task, make_group, plan_groups
from headwise.runtime.rundir import Cell, RunDirectory


def run_groups(
    model: Model,
    task: Task,
    run: Callable[[Group], Cell],
    tell: Callable[[Sequence[Cell]], str],
    directory: RunDirectory | None,
    report: Report,
    enough: Callable[[Sequence[Cell]], bool] | None = None,
) -> list[Cell]:
    """`run(group)` for every group of the task, in order: what it returned, or what the directory holds of it.

    tell(cells so far): the remark of a report; progress counts tokens of context. enough(cells so far): stop early.
    Raises `PromptError` for prompts that cannot be made, before any work is done.
    """
    specs = plan_groups(task, model.positions)
    cells: list[Cell] = []
    done, total = 0, sum(spec.length for spec in specs)
    for spec in specs:
        cell = directory.load(spec.key) if directory else None
        if cell is None:
            cell = run(make_group(spec, task, model.positions))
            if directory:
                directory.save(spec.key, *cell)
        cells.append(cell)
        done += spec.length
        report(done, total, tell(cells))
        if enough and enough(cells):
            break
    return cells


def joined(cells: Sequence[Cell], name: str, axis: int = 0) -> NDArray[Any]:
    """The arrays of that name of all groups, one behind the other."""
    return np.concatenate([arrays[name] for arrays, _ in cells], axis=axis)


def all_info(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The descriptions of all runs, in order."""
    return [info for _, infos in cells for info in infos]


def tell_solved(cells: Sequence[Cell]) -> str:
    """How many runs the model has solved so far."""
    info = all_info(cells)
    return f"{sum(one['success'] for one in info)} of {len(info)} runs solved"
