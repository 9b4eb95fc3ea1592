"""What a remedy costs where nothing is challenged: needles, facts known by heart, plain text, tasks of lm-evaluation-harness.

A remedy that acts on the second turn alone changes not a bit of anything else; what is measured here is the same remedy at all positions, as in
an exported checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from headwise.attention.ablate import ablate
from headwise.attention.scale import scale
from headwise.evaluation.lm_eval import run_lm_eval
from headwise.evaluation.needle import measure_needle_grid
from headwise.evaluation.perplexity import perplexity, plain_windows, with_bos
from headwise.evaluation.remedies import Medicine, Trial
from headwise.heads.progress import Report, silent
from headwise.prompts.grid import even_depths
from headwise.runtime.doubt_asked import Doubts, is_right, plain_answers
from headwise.runtime.needle_runs import needle_task

EVERYWHERE = ("zero", "uniform", "mean", "scale")  # remedies that can act at all positions
LENGTH, ROOM, DEPTHS = 512, 128, 3  # tokens of needle contexts, tokens that are left for question and answer, depths


def side_effects(
    asked: Doubts,
    trial: Trial,
    medicine: Medicine,
    lm_eval: Sequence[str] = (),
    include_path: Path | None = None,
    limit: int | None = None,
    report: Report = silent,
) -> list[dict[str, Any]]:
    """Measures of the unchanged model, and of the model with a remedy at all positions.

    Args:
        asked: Questions; the share that is answered right at first is one of the measures.
        trial: The remedy and its heads.
        medicine: What it is made of.
        lm_eval: Tasks of lm-evaluation-harness.
        include_path: Folder with task files.
        limit: At most so many items of each.
        report: Called with (done, total, remark).

    Returns:
        One row per measure: `what`, `unchanged`, `calmed`, `n` (items); none for a remedy that cannot act everywhere.

    Raises:
        MissingExtraError: A task is given and lm-eval is not installed.
        HeadwiseError: An unknown task.
    """
    if trial.remedy not in EVERYWHERE:
        return []
    model = asked.model
    length = LENGTH if model.positions is None else min(LENGTH, model.positions - ROOM)
    task = needle_task(model, split="test", lengths=(length,), depths=even_depths(DEPTHS), chat=asked.options.chat)
    _, text = plain_windows(task, model.positions)
    windows = with_bos(text, model.tokenizer)
    measures: list[tuple[str, int | None, Callable[[], float]]] = [
        ("needle recall", len(task.needles) * DEPTHS, lambda: float(measure_needle_grid(model, task, asked.options.max_new_tokens)["recall"])),
        ("first answers", len(asked.items), partial(_right, asked)),
        ("perplexity", windows.numel(), lambda: perplexity(model.hf, windows)),
    ]
    rows = []
    for done, (what, count, measure) in enumerate(measures, 1):
        row: dict[str, Any] = {"what": what, "n": count, "unchanged": measure()}
        with _everywhere(trial, medicine):
            rows.append(row | {"calmed": measure()})
        report(done, len(measures) + len(lm_eval), what)
    for name in lm_eval:
        before = run_lm_eval(model, [name], limit, include_path)
        with _everywhere(trial, medicine):
            after = run_lm_eval(model, [name], limit, include_path)
        rows += [
            {"what": f"lm-eval:{task} {metric}", "n": limit, "unchanged": value, "calmed": after["results"][task][metric]}
            for task, found in before["results"].items()
            for metric, value in found.items()
            if isinstance(value, float) and "stderr" not in metric
        ]
        report(len(measures) + 1, len(measures) + len(lm_eval), name)
    return rows


def _right(asked: Doubts) -> float:
    said = plain_answers(asked, [item.first for item in asked.items])
    return sum(is_right(asked, item, text) for text, item in zip(said, asked.items, strict=True)) / len(said)


def _everywhere(trial: Trial, medicine: Medicine) -> AbstractContextManager[Any]:
    hf = medicine.model.hf
    if not len(trial.heads) or trial.remedy == "none":
        return nullcontext()
    if trial.remedy == "scale":
        return scale(hf, trial.heads, medicine.factor)
    return ablate(hf, trial.heads, trial.remedy, means=medicine.means if trial.remedy == "mean" else None)
