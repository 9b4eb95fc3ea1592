"""The needle grid: how well a model answers needle questions over context lengths and depths, with no head ablated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from headwise.attention.plan import attached
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.grid import Group, Task, shared_places
from headwise.runtime.answer import answer_variants, judged_answer, stop_ids
from headwise.runtime.needle_runs import all_info, run_groups
from headwise.runtime.options import check_least
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import leaves, prefill


def measure_needle_grid(
    model: Model,
    task: Task,
    max_new_tokens: int = 50,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Run every cell of the grid once.

    Args:
        model: With its tokenizer.
        task: Needles, haystack and grid.
        max_new_tokens: Longest answer in tokens, at least 1.
        directory: Finished groups are kept there and not run again; None keeps nothing.
        report: `report(done, total, remark)` in tokens of context.

    Returns:
        Plain data: `cells`, one {length, depth, needle, answer, recall, exact, gold_logprob, ...} per prompt; `recall` and `exact`, their means
        in [0, 1]; `runs`, `grid`, and the model.

    Raises:
        HeadwiseError: Answers without a token.
        PromptError: Prompts that cannot be made, before any work is done.
    """
    check_least(1, max_new_tokens=max_new_tokens)
    run = partial(_run_group, model, stop=stop_ids(model, task.composer.builder.opens_thought), limit=max_new_tokens)
    cells = all_info(run_groups(model, task, run, _tell, directory, report))
    means = {name: sum(cell[name] for cell in cells) / len(cells) for name in ("recall", "exact")}
    grid = {"grid": asdict(task.grid), "shared_places": shared_places(cells)}
    return describe_model(model) | means | {"runs": len(cells), **grid, "cells": cells}


def _run_group(model: Model, group: Group, stop: frozenset[int], limit: int) -> Cell:
    info = [dict(cell) for cell in group.info]
    with attached(model.hf):
        for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
            gold = group.prompts[leaf.index].gold
            prefill(model.hf, leaf.past, leaf.rest[:-1])
            answers = answer_variants(model.hf, leaf, gold, [None], lambda _: nullcontext(), stop, limit)
            found = judged_answer(model, answers[0].ids, stop, group.needle.answer)
            info[leaf.index] |= found | {"gold_logprob": answers[0].gold_logprob}
    return {}, info


def _tell(cells: Sequence[Cell]) -> str:
    recall = [one["recall"] for one in all_info(cells)]
    return f"recall {sum(recall) / len(recall):.2f}"
