"""The needle grid: how well a model answers needle questions over lengths and depths, heads left alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from headwise.attach import attached
from headwise.core.progress import Report, silent
from headwise.engine import RunDirectory, answer_variants, leaves, prefill
from headwise.engine.group_runs import all_info, run_groups
from headwise.engine.rundir import Cell
from headwise.evaluate.metrics import judged
from headwise.evaluate.provenance import describe_model, stop_ids
from headwise.families import Loaded
from headwise.prompts.grid import Group, Task


def measure_needle_grid(
    loaded: Loaded,
    task: Task,
    max_new_tokens: int = 50,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Run every cell of the grid once.

    Returns {"cells": [{length, depth, needle, answer, recall, exact, gold_logprob, ...}], "recall", "exact": means in [0, 1], ...}.
    """
    run = partial(_run_group, loaded, stop=stop_ids(loaded), limit=max_new_tokens)
    cells = all_info(run_groups(loaded, task, run, _tell, directory, report))
    means = {name: sum(cell[name] for cell in cells) / len(cells) for name in ("recall", "exact")}
    return describe_model(loaded) | means | {"runs": len(cells), "grid": asdict(task.grid), "cells": cells}


def _run_group(loaded: Loaded, group: Group, stop: frozenset[int], limit: int) -> Cell:
    info = [dict(cell) for cell in group.info]
    with attached(loaded.model):
        for leaf in leaves(loaded.model, [prompt.ids for prompt in group.prompts]):
            gold = group.prompts[leaf.index].gold
            prefill(loaded.model, leaf.past, leaf.rest[:-1])
            answers = answer_variants(loaded.model, leaf, gold, [None], lambda _: nullcontext(), stop, limit)
            text = loaded.tokenizer.decode(answers[0].ids, skip_special_tokens=True)
            info[leaf.index] |= judged(text, group.needle.answer) | {"gold_logprob": answers[0].gold_logprob}
    return {}, info


def _tell(cells: Sequence[Cell]) -> str:
    recall = [one["recall"] for one in all_info(cells)]
    return f"recall {sum(recall) / len(recall):.2f}"
