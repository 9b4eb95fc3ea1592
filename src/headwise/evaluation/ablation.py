"""Ablation sweep: what a model answers without its top heads, without as many random or weak ones, and with all (Wu et al. 2024, sec. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from headwise.attention import ablate
from headwise.attention.ablate import MODES, SCOPES
from headwise.attention.means import head_means
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.evaluation.ablation_table import METRICS, AblationResult
from headwise.evaluation.perplexity import losses_without, with_bos
from headwise.evaluation.variants import describe_scores, distinct_sets, head_variants
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.models.model import Model
from headwise.models.provenance import describe_model
from headwise.prompts.encoder import Stops, read_answer
from headwise.prompts.grid import Group, Task, describe_task
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.needle_runs import all_info, joined, run_groups
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import Leaf, leaves, prefill
from headwise.stats.metrics import exact_match, unigram_recall

TOKENS = 16_384  # rows x prompt tokens in one pass of scope `all`
PERPLEXITY_DRAWS = 5  # random draws per K whose perplexity is measured


@dataclass(frozen=True)
class AblationOptions:
    """What to take away and how to measure it.

    top: numbers of heads K. mode, scope: see `ablate`. controls: layer-matched random draws per K, all different (fewer if there are
    not that many). seed: of draws, intervals and tests. max_new_tokens: longest answer. rows: variants in one batch.
    """

    top: tuple[int, ...] = (1, 2, 4, 8)
    mode: str = "zero"
    scope: str = "answer"
    controls: int = 20
    seed: int = 0
    max_new_tokens: int = 32
    rows: int = 32

    def __post_init__(self) -> None:
        if not self.top or min(self.top) < 1 or len(set(self.top)) != len(self.top):
            raise HeadwiseError(f"top must name different numbers of heads, each at least 1; got {list(self.top)}")
        for name, known in (("mode", MODES), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise HeadwiseError(f"unknown ablation {name} {getattr(self, name)!r}; use {', '.join(known)}")
        for name in ("controls", "max_new_tokens", "rows"):
            if getattr(self, name) < 1:
                raise HeadwiseError(f"{name} must be at least 1; got {getattr(self, name)}")


def ablation_sweep(
    model: Model,
    scores: HeadScores,
    task: Task,
    options: AblationOptions,
    calibration: Tensor | None = None,
    plain: Tensor | None = None,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> AblationResult:
    """Answer every prompt of the task under every variant (see `head_variants`), and measure perplexity under some of them.

    calibration: text for mode `mean`. plain: text for perplexity, always under scope `all`. Both are ids [n, T] without BOS (it is added),
    from `plain_windows` or elsewhere. directory: finished parts are kept there and not run again.
    Raises `HeadwiseError` for heads of another model, a K without controls, or mode `mean` without calibration text.
    """
    variants = head_variants(scores, options.top, options.controls, options.seed)
    sets, places = distinct_sets(variants)
    for heads in sets:
        model.check(heads)
    without = partial(ablate, model.hf, mode=options.mode, means=_means(model, options, calibration))
    run = partial(_run_group, model, sets=sets, options=options, without=without, stop=stop_ids(model, task.composer.builder.opens_thought))
    cells = run_groups(
        model, task, run, lambda cells: f"{len(all_info(cells))} prompts, {len(sets)} sets of heads", directory, report
    )
    values = {metric: joined(cells, metric, axis=1)[places] for metric in METRICS}
    losses = np.empty((len(variants), 0))
    if plain is not None:
        measured = [variant.heads if variant.draw < PERPLEXITY_DRAWS else None for variant in variants]
        losses = losses_without(model.hf, with_bos(plain, model.tokenizer), measured, without)
    return AblationResult(
        variants, tuple(all_info(cells)), values, losses, options.seed, describe_run(model, scores, task, options)
    )


def describe_run(model: Model, scores: HeadScores, task: Task, options: AblationOptions) -> dict[str, Any]:
    """All that decides the result (texts of your own for calibration and perplexity aside), as plain data."""
    run: dict[str, Any] = {
        "mode": options.mode,
        "scope": options.scope,
        "options": asdict(options),
        "head_file": describe_scores(scores),
    }
    return run | describe_task(task) | describe_model(model)


def _run_group(model: Model, group: Group, sets: list[HeadSet], options: AblationOptions, without: Any, stop: Stops) -> Cell:
    """({metric: [set, prompt]}, info per prompt with the answer of the whole model)."""
    tables = {metric: np.zeros((len(sets), len(group.prompts))) for metric in METRICS}
    info = [dict(cell) for cell in group.info]
    gold = group.needle.answer
    with attached(model.hf):
        for leaf in _starts(model.hf, [prompt.ids for prompt in group.prompts], options.scope):
            prompt = group.prompts[leaf.index]
            enter = partial(without, scope=options.scope, answer_from=len(prompt.ids) - 1)
            rows = max(1, min(options.rows, TOKENS // len(leaf.rest)))
            batches = [sets[start : start + rows] for start in range(0, len(sets), rows)]
            answer = partial(answer_variants, model.hf, leaf, prompt.gold)
            answers = [found for batch in batches for found in answer(batch, enter, stop, options.max_new_tokens)]
            texts = [read_answer(model.tokenizer, found.ids, stop) for found in answers]
            tables["recall"][:, leaf.index] = [unigram_recall(text, gold) for text in texts]
            tables["exact"][:, leaf.index] = [exact_match(text, gold) for text in texts]
            tables["logprob"][:, leaf.index] = [found.gold_logprob for found in answers]
            info[leaf.index]["answer"] = texts[0]
    return tables, info


def _starts(model: Any, prompts: Sequence[Sequence[int]], scope: str) -> Iterator[Leaf]:
    """Where variants part: at the last prompt token (scope `answer`), or at the first (scope `all`)."""
    if scope == "all":
        yield from (Leaf(i, tuple(prompt), full_cache(model)) for i, prompt in enumerate(prompts))
        return
    for leaf in leaves(model, prompts):
        prefill(model, leaf.past, leaf.rest[:-1])
        yield leaf


def _means(model: Model, options: AblationOptions, calibration: Tensor | None) -> Tensor | None:
    if options.mode != "mean":
        return None
    if calibration is None:
        raise HeadwiseError("mode 'mean' needs calibration text; give windows of plain text (see plain_windows)")
    return head_means(model.hf, [with_bos(calibration, model.tokenizer)])
