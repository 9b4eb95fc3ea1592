"""Semantic score: find the heads that choose what a cache keeps (Lin et al. 2025, CompressKV, arXiv:2508.02401, eq. 5).

Needle questions as for the copy score; here a head is paid for all the attention that it gives to the answer span while the model says
tokens of it, wherever its strongest key is. Prompts are composed of pieces that are encoded without special tokens, so that no BOS
marks the needle.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention.observe import observe
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadScores
from headwise.methods.compresskv.formula import matching_steps, semantic_lift, semantic_score
from headwise.methods.compresskv.options import Semantic
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import answer_start
from headwise.prompts.grid import Group, Task, describe_task, plan_groups
from headwise.runtime.answer import judged_answer, traced_answer
from headwise.runtime.needle_runs import all_info, joined, run_groups, tell_solved
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import leaves

SCORE_VERSION = 1
STATED = ("extremes", "min_recall", "max_new_tokens", "ignore_eos")
MORE = "use more depths, windows, lengths or needles, or a lower --min-runs"
TABLES = ("scores", "lifts")
Arrays = dict[str, NDArray[Any]]


def semantic_scores(
    model: Model, task: Task, options: Semantic, directory: RunDirectory | None = None, report: Report = silent
) -> HeadScores:
    """Semantic scores of all query heads: per run a sum over steps, from 0 to the number of steps that say a token of the answer.

    Args:
        model: With its tokenizer.
        task: The prompts; `Semantic.task` makes those that the options ask for.
        options: How heads are scored.
        directory: Finished groups are kept there and not run again.
        report: `report(done, total, remark)`; progress in context tokens.

    Returns:
        Scores with one row of per-run values per solved run; provenance["lift"] is the table of mean lifts (see `semantic_lift`; null where
        there is none) and provenance["cells"] lists every run.

    Raises:
        NoSuccessfulRunError: The model solves no run.
        PromptError: Prompts that cannot be made.
        HeadwiseError: Fewer solved runs than `min_runs`.
    """
    stop, chosen = options.stop(model, task), _without_extremes(task, options)
    specs = plan_groups(chosen, model.positions)
    if (count := len(specs) * len(chosen.grid.depths)) < options.min_runs:
        raise HeadwiseError(f"the grid has {count} runs, but a ranking needs {options.min_runs} solved ones; {MORE}")
    run = partial(_run_group, model, options=options, stop=stop)
    cells = run_groups(model, chosen, run, tell_solved, directory, report)
    return _collect(model, task, options, {name: joined(cells, name) for name in TABLES}, all_info(cells))


def describe_run(model: Model, task: Task, options: Semantic) -> dict[str, Any]:
    """All that decides the result, as plain data; `min_runs` only decides whether there is one."""
    stated = {name: getattr(options, name) for name in STATED}
    score = {"score": "semantic", "score_version": SCORE_VERSION, "options": stated}
    return score | describe_task(task) | describe_model(model)


def _without_extremes(task: Task, options: Semantic) -> Task:
    depths = tuple(depth for depth in task.grid.depths if options.extremes == "keep" or 0 < depth < 1)
    if not depths:
        raise HeadwiseError("the grid has no depth but 0 and 1, and extremes 'drop' leaves both out; give more depths")
    return replace(task, grid=replace(task.grid, depths=depths))


def _run_group(model: Model, group: Group, options: Semantic, stop: frozenset[int]) -> Cell:
    """({"scores", "lifts": [depth, L, H]}, info per depth); unsolved runs hold NaN."""
    tables = {name: np.full((len(group.prompts), *model.heads.shape), np.nan, np.float32) for name in TABLES}
    info = [dict(cell) for cell in group.info]
    left_out = [layer for layer in range(model.heads.shape[0]) if layer not in model.modules]
    with observe(model.hf) as seen:
        for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
            prompt, cell = group.prompts[leaf.index], info[leaf.index]
            span = prompt.span("answer")
            seen.spans = (span,)
            answer = traced_answer(model.hf, seen, leaf, prompt.gold, stop, options.max_new_tokens, model.is_hybrid)
            start = answer_start(stop, answer.ids) or 0  # thoughts do not count
            mass = seen.mass[:, 0, :, start : len(answer.ids), 0]  # the pass that gave the answer is the one seen last
            matching = matching_steps(torch.tensor(answer.ids[start:]), torch.tensor(prompt.ids[span.start : span.stop])).to(mass.device)
            cell |= judged_answer(model, answer.ids, stop, group.needle.answer) | {"matching_steps": int(matching.sum())}
            cell["success"] = cell["recall"] > options.min_recall
            if cell["success"]:
                tables["scores"][leaf.index] = semantic_score(mass, matching).cpu().numpy()
                tables["lifts"][leaf.index] = semantic_lift(mass, matching, span.length, len(prompt.ids)).cpu().numpy()
                tables["scores"][leaf.index, left_out] = np.nan
    return tables, info


def _collect(model: Model, task: Task, options: Semantic, runs: Arrays, cells: list[dict[str, Any]]) -> HeadScores:
    solved = np.array([cell["success"] for cell in cells])
    if not solved.any():
        raise options.none_solved(cells)
    if solved.sum() < options.min_runs:
        raise HeadwiseError(f"{solved.sum()} of {len(cells)} runs solved, but a ranking needs {options.min_runs}; {MORE}")
    scores, lifts = (runs[name][solved].astype(np.float64) for name in TABLES)
    counts = np.maximum((~np.isnan(lifts)).sum(axis=0), 1)
    lift = np.where(np.isnan(lifts).all(axis=0), np.nan, np.nansum(lifts, axis=0) / counts)
    provenance = describe_run(model, task, options) | {"runs": len(cells), "solved": int(solved.sum()), "cells": cells}
    info = tuple({k: c[k] for k in ("length", "depth", "needle", "window")} for c in cells if c["success"])
    return HeadScores(scores.mean(axis=0), "semantic", SCORE_VERSION, scores.astype(np.float32), info, provenance, {"lift": lift})
