"""Copy scores of one model on the needle grid, and what follows from the spread of its needles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.claims.claim import Number
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.retrieval_head.sizes import Sizes
from headwise.heads import HeadScores, HeadwiseError, NoSuccessfulRunError, PromptError
from headwise.heads.progress import Report, silent
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores, describe_run
from headwise.models.model import Model
from headwise.prompts.grid import Task, even_depths, plan_groups
from headwise.runtime.needle_runs import needle_task

Z = 1.959964  # quantile of the normal distribution that covers 95 %
Runs = NDArray[np.float32]
Values = NDArray[np.float64]


def fitting_task(
    model: Model,
    split: str,
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    sizes: Sizes,
    needles: int | None = None,
    chat: bool = False,
) -> Task:
    """Bundled needles in the bundled books, at those lengths that fit the model.

    Args:
        model: With its tokenizer.
        split: Of the needles, see `bundled_needles`.
        lengths: Context lengths in tokens.
        depths: Fractions in [0, 1].
        sizes: Number of needles and seed.
        needles: Another number of needles.
        chat: In the chat template.

    Raises:
        PromptError: No length fits, or the chat template cannot be used.
    """
    task = needle_task(model, split=split, lengths=lengths, depths=depths, chat=chat, seed=sizes.seed).first_needles(needles or sizes.needles)
    fitting, refused = [], ""
    for length in lengths:
        try:
            plan_groups(replace(task, grid=replace(task.grid, lengths=(length,))), model.positions)
            fitting.append(length)
        except PromptError as error:
            refused = refused or str(error)
    if not fitting:
        raise PromptError(f"no context length of {list(lengths)} fits: {refused}")
    return replace(task, grid=replace(task.grid, lengths=tuple(fitting)))


def scored(bench: Bench, task: Task, report: Report = silent, options: Copy | None = None, model: Model | None = None) -> HeadScores:
    """Copy scores from the runs of a task; finished groups are kept, and shared with other experiments.

    Args:
        bench: Whose model is asked, unless another one is given.
        task: The prompts.
        report: Progress.
        options: How heads are scored.
        model: Another model.

    Raises:
        NoSuccessfulRunError: The model solves no run.
    """
    model, options = model or bench.model, options or Copy()
    return copy_scores(model, task, options, bench.shared_cells("copy", describe_run(model, task, options)), report)


def detected(bench: Bench, sizes: Sizes, report: Report = silent, model: Model | None = None) -> HeadScores:
    """Scores of all heads on the detection half of the needles.

    Args:
        bench: Whose model is asked, unless another one is given.
        sizes: Lengths, depths, needles and seed.
        report: Progress.
        model: Another model.

    Raises:
        NotTestable: The model solves no run, or no length fits.
    """
    model = model or bench.model
    try:
        task = fitting_task(model, "detect", sizes.lengths, even_depths(sizes.depths), sizes)
        return scored(bench, task, report, model=model)
    except (NoSuccessfulRunError, PromptError) as error:
        raise NotTestable(f"finds no heads: {error}") from error


def ranked(bench: Bench, sizes: Sizes, report: Report = silent) -> HeadScores:
    """As `detected`, for measurements that remove the strongest heads.

    Raises:
        NotTestable: As there; or all heads score the same; or they are too few to leave others for the controls.
    """
    scores = detected(bench, sizes, report)
    try:
        heads = len(scores.ranking())
    except HeadwiseError as error:
        raise NotTestable(f"no head stands out: {error}") from error
    if not usable_top(sizes, scores):
        raise NotTestable(f"needs more than {heads} heads: with half of them removed none would be left for the controls")
    return scores


def usable_top(sizes: Sizes, scores: HeadScores) -> tuple[int, ...]:
    """The numbers of heads that leave enough others for the controls."""
    return tuple(k for k in sizes.top if 2 * k <= len(scores.ranking()))


def needles_of(scores: HeadScores) -> NDArray[np.int64]:
    """[run] number of the needle of each run."""
    return np.asarray([int(info["needle"]) for info in scores.run_info], dtype=np.int64)


def needle_means(scores: HeadScores) -> Runs:
    """[needle, layer, head]: mean score over the runs of each needle; the runs of one needle are no independent evidence."""
    if scores.runs is None:
        return np.empty((0, *scores.shape), dtype=np.float32)
    which = needles_of(scores)
    return np.stack([scores.runs[which == needle].mean(axis=0) for needle in np.unique(which)])


def at_length(scores: HeadScores, length: int) -> HeadScores:
    """The scores that the runs of one context length give. Raises `NoSuccessfulRunError` if none of them was solved."""
    kept = [i for i, info in enumerate(scores.run_info) if info["length"] == length]
    if not kept or scores.runs is None:
        raise NoSuccessfulRunError(f"no run at {length} tokens was solved")
    cells = [cell for cell in scores.provenance["cells"] if cell["length"] == length]
    counts = {"runs": len(cells), "solved": len(kept), "cells": cells}
    runs = scores.runs[kept]
    return replace(
        scores,
        values=runs.astype(np.float64).mean(axis=0),
        runs=runs,
        run_info=tuple(scores.run_info[i] for i in kept),
        provenance={**scores.provenance, **counts},
    )


def recall_of(scores: HeadScores) -> float:
    """Mean unigram recall of the whole model over all runs of a detection, solved or not."""
    return float(np.mean([cell["recall"] for cell in scores.provenance["cells"]]))


def solved_share(scores: HeadScores) -> float:
    """Share of the runs that the model solved."""
    return float(scores.provenance["solved"] / scores.provenance["runs"])


def without_each_needle(scores: HeadScores) -> list[Values]:
    """Score maps [layer, head] with one needle left out, needle by needle."""
    which, runs = needles_of(scores), np.asarray(scores.runs, dtype=np.float64)
    total = runs.sum(axis=0)
    found = []
    for needle in np.unique(which):
        mine = which == needle
        if not mine.all():
            found.append((total - runs[mine].sum(axis=0)) / (~mine).sum())
    return found


def variance(values: Sequence[float]) -> float:
    """Variance of a number from what it is with one needle left out (jackknife); NaN below two needles."""
    count = len(values)
    return float((count - 1) / count * ((np.asarray(values) - np.mean(values)) ** 2).sum()) if count > 1 else float("nan")


def over_needles(scores: HeadScores, statistic: Callable[[Values], float]) -> Number:
    """A number in [0, 1] of a score map with its 95 % interval over needles, by leaving out one at a time.

    Resampling needles would not do: a map of fewer different needles is noisier, which moves its largest score and its spread one way.

    Args:
        scores: With per-run values.
        statistic: Score map [layer, head] -> number.
    """
    value, half = statistic(scores.values), Z * variance([statistic(values) for values in without_each_needle(scores)]) ** 0.5
    return float(value), float(np.maximum(value - half, 0.0)), float(np.minimum(value + half, 1.0))


def with_ends(value: float, drawn: NDArray[Any]) -> tuple[float, float, float]:
    """A number and the middle 95 % of draws of it, in six digits; NaN draws are left out."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return round(float(value), 6), round(float(low), 6), round(float(high), 6)


def shares_of_time(bench: Bench, lengths: Mapping[str, float]) -> Callable[[str], Report]:
    """Progress over parts of known rough length, in the order of `lengths`: part -> what it reports to."""
    total = sum(lengths.values())

    def part(name: str) -> Report:
        before = sum(list(lengths.values())[: list(lengths).index(name)])

        def told(done: float, whole: float, remark: str) -> None:
            bench.report(before + (lengths[name] * done / whole if whole else 0.0), total, f"{name}: {remark}" if remark else name)

        return told

    return part
