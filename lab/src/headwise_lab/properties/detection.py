"""Copy scores of one model on the needle grid, and all that is known about a model while its properties are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads import HeadScores, HeadwiseError, NoSuccessfulRunError, PromptError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores, describe_run
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, even_depths, plan_groups
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.runtime.rundir import RunDirectory
from headwise_lab.properties.lab_models import CHAT, LONGER, NEEDLES, LabModel
from headwise_lab.properties.settings import PART, RealSettings, Settings


@dataclass
class Evidence:
    """What was measured on one model. The parts are plain data, empty if not measured.

    Attributes:
        model: Which one.
        shape: (layers, query heads per layer).
        positions: What it can hold in tokens; None: no limit.
        scores: Copy scores; None if it solved no run, or if all heads score the same.
        why: The reason for that.
        no_heads: It does solve runs, but no head stands out.
        retests: Scores of a real model on other prompts, by relation (`RETESTS`), or why there are none.
        own_lengths: Copy scores of a continued model at lengths that its base cannot take.
        steps: See `dynamic.trace_steps`.
        ablation: See `causal.measure`.
        reasoning: See `reasoning.measure`.
    """

    model: LabModel
    shape: tuple[int, int]
    positions: int | None
    scores: HeadScores | None = None
    why: str = ""
    no_heads: bool = False
    own_lengths: HeadScores | None = None
    retests: dict[str, HeadScores | str] = field(default_factory=dict)
    paraphrased: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)
    reasoning: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @property
    def needle_runs(self) -> NDArray[np.float32]:
        """[needle, layer, head]: see `needle_means`; no row without scores."""
        return np.empty((0, *self.shape), dtype=np.float32) if self.scores is None else needle_means(self.scores)


def needles_of(scores: HeadScores) -> NDArray[np.int64]:
    """[run] number of the needle of each run."""
    return np.asarray([int(info["needle"]) for info in scores.run_info], dtype=np.int64)


def needle_means(scores: HeadScores) -> NDArray[np.float32]:
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
    values = runs.astype(np.float64).mean(axis=0)
    return replace(
        scores,
        values=values,
        runs=runs,
        run_info=tuple(scores.run_info[i] for i in kept),
        provenance={**scores.provenance, **counts},
    )


def needle_task(
    model: Model,
    split: str,
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    settings: Settings,
    needles: int | None = None,
    chat: bool = False,
) -> Task:
    """Bundled needles in the bundled books, at those lengths that fit the model.

    Args:
        model: With its tokenizer.
        split: Of the needles, see `bundled_needles`.
        lengths: Context lengths in tokens.
        depths: Fractions in [0, 1].
        settings: Number of needles and seed.
        needles: Another number of needles.
        chat: In the chat template.

    Raises:
        PromptError: No length fits, or the chat template cannot be used.
    """
    encoder = PieceEncoder(model.tokenizer)
    chosen = bundled_needles(split)[: needles or settings.needles]
    grid = GridOptions(lengths, depths, part=PART, seed=settings.seed)
    task = Task(chosen, Haystack(bundled_texts(), encoder), NeedleComposer(encoder, chat=chat), grid)
    fitting, refused = [], ""
    for length in lengths:
        try:
            plan_groups(replace(task, grid=replace(grid, lengths=(length,))), model.positions)
            fitting.append(length)
        except PromptError as error:
            refused = refused or str(error)
    if not fitting:
        raise PromptError(f"no context length of {list(lengths)} fits {model.name}: {refused}")
    return replace(task, grid=replace(grid, lengths=tuple(fitting)))


def detect(model: Model, settings: Settings, evidence: Evidence, work: Path | None) -> None:
    """Score all heads on the detection half of the needles; a model that solves no run is a result, too.

    Args:
        model: The model.
        settings: Lengths, depths, needles and seed.
        evidence: Where scores are put, or why there are none.
        work: Folder for finished parts; None keeps nothing.
    """
    try:
        task = needle_task(model, "detect", settings.lengths, even_depths(settings.depths), settings)
        scores = _scores(model, task, work, "detect")
    except (NoSuccessfulRunError, PromptError) as error:
        evidence.why = str(error)
        return
    try:
        scores.ranking()
        evidence.scores = scores
    except HeadwiseError as error:
        evidence.why, evidence.no_heads = str(error), True


def detect_long(model: Model, settings: Settings, evidence: Evidence, work: Path | None) -> None:
    """Scores of a continued model at lengths that its base cannot take; nothing is done for other models.

    Args:
        model: The model.
        settings: Depths and seed. Lengths are half and seven eighths of the positions, and a quarter of the needles is used.
        evidence: Where `own_lengths` is put, if a run is solved.
        work: Folder for finished parts; None keeps nothing.
    """
    positions = model.positions or 0
    if not evidence.model.recipe.get("start") or positions < 4 * max(settings.lengths):
        return
    lengths = (positions // 2, positions * 7 // 8)
    try:
        task = needle_task(model, "detect", lengths, even_depths(settings.depths), settings, max(1, settings.needles // 4))
        evidence.own_lengths = _scores(model, task, work, "long")
    except (NoSuccessfulRunError, PromptError):
        return


def retest(model: Model, settings: RealSettings, evidence: Evidence, work: Path | None) -> None:
    """Scores of a real model in longer contexts, in its chat template, and on the needles of the other half."""
    short, depths = (settings.lengths[0],), even_depths(settings.depths)
    tasks: dict[str, Callable[[], Task]] = {
        LONGER: lambda: needle_task(
            model, "detect", (settings.long_length,), settings.long_depths, settings, settings.long_needles
        ),
        CHAT: lambda: needle_task(model, "detect", short, depths, settings, chat=True),
        NEEDLES: lambda: needle_task(model, "test", short, depths, settings),
    }
    for kind, task in tasks.items():
        try:
            evidence.retests[kind] = _scores(model, task(), work, kind.replace(" ", "-"))
        except (NoSuccessfulRunError, PromptError) as error:
            evidence.retests[kind] = str(error)


def _scores(model: Model, task: Task, work: Path | None, kind: str) -> HeadScores:
    options = Copy()
    directory = open_directory(work, f"{model.name}.{kind}", describe_run(model, task, options))
    return copy_scores(model, task, options, directory)


def open_directory(work: Path | None, name: str, description: Mapping[str, Any]) -> RunDirectory | None:
    """The run directory of one part, so that an interrupted command continues.

    Args:
        work: Folder of all parts; None: nothing is kept.
        name: Of the part.
        description: All that decides its result.

    Returns:
        The directory, or None.
    """
    return None if work is None else RunDirectory(work / name, description)
