"""Copy score: find retrieval heads by needle questions (Wu et al. 2024, arXiv:2404.15574, sec. 2).

A head copies a token if its strongest key lies in the needle and holds the token that the model emits next. Its score is the share of
the needle copied during an answer, averaged over the runs that the model solves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention.observe import observe
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadScores
from headwise.maths.copy import copy_score
from headwise.methods.copy.options import Copy
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import answer_start
from headwise.prompts.grid import Group, Task, describe_task
from headwise.runtime.answer import judged_answer, traced_answer
from headwise.runtime.needle_runs import all_info, joined, run_groups, tell_solved
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import leaves
from headwise.stats.agreement import top_overlap

SCORE_VERSION = 1
STATED = ("rule", "match", "min_recall", "max_new_tokens", "ignore_eos", "until_stable")
STABLE_TOP, STABLE_OVERLAP, STABLE_GROUPS = 16, 0.9, 8


def copy_scores(
    model: Model,
    task: Task,
    options: Copy,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> HeadScores:
    """Copy scores of all query heads, from the runs of a task.

    Args:
        model: With its tokenizer.
        task: The prompts; `Copy.task` makes those that the options ask for.
        options: How heads are scored.
        directory: Finished groups are kept there and not run again.
        report: `report(done, total, remark)`; progress in context tokens.

    Returns:
        Scores in [0, 1] with one row of per-run values per solved run; every run, solved or not, is listed in provenance["cells"].

    Raises:
        NoSuccessfulRunError: The model solves no run.
        PromptError: Prompts that cannot be made.
    """
    run = partial(_run_group, model, options=options, stop=options.stop(model, task))
    cells = run_groups(model, task, run, tell_solved, directory, report, _stable if options.until_stable else None)
    return _collect(model, task, options, joined(cells, "scores"), all_info(cells))


def describe_run(model: Model, task: Task, options: Copy) -> dict[str, Any]:
    """All that decides the result, as plain data."""
    stated = {name: getattr(options, name) for name in STATED}
    score = {"score": "copy", "score_version": SCORE_VERSION, "options": stated}
    return score | describe_task(task) | describe_model(model)


def _run_group(model: Model, group: Group, options: Copy, stop: frozenset[int]) -> Cell:
    """({"scores": [depth, L, H]}, info per depth); unsolved runs hold NaN."""
    scores = np.full((len(group.prompts), *model.heads.shape), np.nan, dtype=np.float32)
    info = [dict(cell) for cell in group.info]
    with observe(model.hf, argmax_only=True) as seen:
        for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
            prompt, cell = group.prompts[leaf.index], info[leaf.index]
            answer = traced_answer(model.hf, seen, leaf, prompt.gold, stop, options.max_new_tokens, model.is_hybrid)
            cell |= judged_answer(model, answer.ids, stop, group.needle.answer)
            cell["success"] = cell["recall"] > options.min_recall
            if cell["success"]:
                start = answer_start(stop, answer.ids) or 0  # what is copied into thoughts does not count
                rows = answer.argmax[..., start:]
                keys, emitted = (torch.tensor(ids, device=rows.device) for ids in (prompt.ids, answer.ids[start:]))
                table = copy_score(rows, keys, emitted, prompt.span("answer"), options.rule, options.match)
                scores[leaf.index] = table.cpu().numpy()
                scores[leaf.index, [i for i in range(table.shape[0]) if i not in model.modules]] = np.nan
    return {"scores": scores}, info


def _solved(runs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Runs [run, L, H] that passed the gate (an unsolved run is NaN everywhere)."""
    return np.asarray(runs[~np.isnan(runs).all(axis=(1, 2))])


def _stable(cells: Sequence[Cell]) -> bool:
    """Whether every second group and the others put the same heads on top."""
    halves = [_solved(joined(cells[i::2], "scores")) for i in range(2)] if len(cells) >= STABLE_GROUPS else []
    if not halves or min(map(len, halves)) == 0:
        return False
    top = min(STABLE_TOP, max(1, halves[0][0].size // 4))
    return top_overlap(halves[0].mean(axis=0), halves[1].mean(axis=0), top) >= STABLE_OVERLAP


def _collect(
    model: Model, task: Task, options: Copy, runs: NDArray[np.float32], cells: list[dict[str, Any]]
) -> HeadScores:
    solved = [cell["success"] for cell in cells]
    if not any(solved):
        raise options.none_solved(cells)
    kept = runs[np.asarray(solved)]
    provenance = describe_run(model, task, options) | {"runs": len(cells), "solved": sum(solved), "cells": cells}
    info = tuple({k: c[k] for k in ("length", "depth", "needle", "window")} for c in cells if c["success"])
    return HeadScores(kept.astype(np.float64).mean(axis=0), "copy", SCORE_VERSION, kept, info, provenance)
