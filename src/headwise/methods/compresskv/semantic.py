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

from headwise.attention.observe import observe
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadScores
from headwise.methods.compresskv.formula import matching_steps, semantic_lift, semantic_score
from headwise.methods.compresskv.options import Semantic
from headwise.models.model import Model
from headwise.prompts.grid import Group, Task, plan_groups
from headwise.runtime.needle_runs import Solved, ask, describe_questions, run_groups, solved_runs, tell_solved
from headwise.runtime.rundir import Cell, RunDirectory

SCORE_VERSION = 1
STATED = ("extremes", "min_recall", "max_new_tokens", "ignore_eos")
MORE = "use more depths, windows, lengths or needles, or a lower --min-runs"
TABLES = ("scores", "lifts")


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
    return _collect(model, task, options, solved_runs(cells, TABLES, options))


def describe_run(model: Model, task: Task, options: Semantic) -> dict[str, Any]:
    """All that decides the result, as plain data; `min_runs` only decides whether there is one."""
    return describe_questions(model, task, options, "semantic", SCORE_VERSION, STATED)


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
        for run in ask(model, group, options, stop, seen, info, spans=("answer",)):
            span, said = run.prompt.span("answer"), run.answer.ids
            mass = seen.mass[:, 0, :, run.start : len(said), 0]  # the pass that gave the answer is the one seen last
            matching = matching_steps(torch.tensor(said[run.start :]), torch.tensor(run.prompt.ids[span.start : span.stop])).to(
                mass.device
            )
            run.cell["matching_steps"] = int(matching.sum())
            if run.cell["success"]:
                tables["scores"][run.number] = semantic_score(mass, matching).cpu().numpy()
                tables["lifts"][run.number] = semantic_lift(mass, matching, span.length, len(run.prompt.ids)).cpu().numpy()
                tables["scores"][run.number, left_out] = np.nan
    return tables, info


def _collect(model: Model, task: Task, options: Semantic, solved: Solved) -> HeadScores:
    runs, count = solved.facts["runs"], solved.facts["solved"]
    if count < options.min_runs:
        raise HeadwiseError(f"{count} of {runs} runs solved, but a ranking needs {options.min_runs}; {MORE}")
    scores, lifts = (solved.tables[name] for name in TABLES)
    counts = np.maximum((~np.isnan(lifts)).sum(axis=0), 1)
    lift = np.where(np.isnan(lifts).all(axis=0), np.nan, np.nansum(lifts, axis=0) / counts)
    provenance = describe_run(model, task, options) | solved.facts
    return HeadScores(
        scores.mean(axis=0), "semantic", SCORE_VERSION, scores.astype(np.float32), solved.info, provenance, {"lift": lift}
    )
