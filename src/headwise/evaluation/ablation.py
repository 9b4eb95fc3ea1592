"""Ablation sweep: recall of the whole model, and with its top heads or as many random or weak heads ablated (Wu et al. 2024, sec. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from headwise.attention import ablate
from headwise.attention.ablate import MODES, SCOPES
from headwise.attention.means import head_means, head_norms, head_samples
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.evaluation.ablation_table import METRICS, AblationResult
from headwise.evaluation.ablation_task import default_task, given_scores, sweep_tokens
from headwise.evaluation.perplexity import digest_of, losses_without, plain_windows, with_bos
from headwise.evaluation.variants import MORE_CONTROLS, Kind, Variant, describe_scores, distinct_sets, head_variants
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import Stops, read_answer
from headwise.prompts.grid import Group, Task, describe_task, shared_places
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.needle_runs import all_info, joined, run_groups
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import Leaf, leaves, prefill
from headwise.stats.metrics import exact_match, unigram_recall

CALIBRATED = ("mean", "resample")  # modes that need text of their own
TOKENS = 16_384  # rows x prompt tokens in one pass of scope `all`
PERPLEXITY_DRAWS = 5  # random draws per K whose perplexity is measured


@dataclass(frozen=True)
class AblationOptions:
    """What to take away and how to measure it.

    Attributes:
        top: Different numbers of heads K, each at least 1.
        mode: `zero`, `uniform`, `mean` or `resample`.
        scope: `answer` or `all`.
        controls: Layer-matched random draws per K, at least 1.
        seed: Of draws, intervals and tests, 0 or more.
        max_new_tokens: Longest answer in tokens, at least 1.
        rows: Variants in one batch, at least 1.

    Raises:
        HeadwiseError: A value that is none of these.
    """

    top: tuple[int, ...] = (1, 2, 4, 8)
    mode: str = "zero"
    scope: str = "answer"
    controls: int = 20
    seed: int = 0
    max_new_tokens: int = 32
    rows: int = 32
    more: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        if not self.top or min(self.top) < 1 or len(set(self.top)) != len(self.top):
            raise HeadwiseError(f"top must name different numbers of heads, each at least 1; got {list(self.top)}")
        for name, known in (("mode", MODES), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise HeadwiseError(f"unknown ablation {name} {getattr(self, name)!r}; use {', '.join(known)}")
        for kind in self.more:
            if kind not in MORE_CONTROLS:
                raise HeadwiseError(f"unknown kind of controls {kind!r}; use {', '.join(MORE_CONTROLS)}")
        for name, least in (("controls", 1), ("max_new_tokens", 1), ("rows", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise HeadwiseError(f"{name} must be at least {least}; got {getattr(self, name)}")


def ablation_curve(
    model: Model,
    heads: HeadScores | HeadSet | Iterable[tuple[int, int]],
    top: Sequence[int] = (1, 2, 4, 8),
    *,
    mode: str = "zero",
    scope: str = "answer",
    controls: int = 20,
    seed: int = 0,
    max_new_tokens: int = 32,
    rows: int = 32,
    more: Sequence[Kind] = (),
    task: Task | None = None,
    perplexity: bool = True,
    texts: tuple[Tensor, Tensor] | None = None,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> AblationResult:
    """Measure what ablating a model's top K heads costs, beside ablating the K weakest and K random ones (Wu et al. 2024, section 4).

    Every prompt of the task is answered under every variant: with all heads, and for each K without the top K, without the K weakest, and
    without layer-matched random draws of K heads.

    Args:
        model: A model with its tokenizer.
        heads: Scores of its heads. Or heads in the order of their importance, strongest first; all others count as equally weak then.
        top: Different numbers of heads K, each at least 1.
        mode: What becomes of a head: `zero`, `uniform`, `mean` or `resample` (see `headwise.ablate`).
        scope: Where: `answer` or `all` (see `headwise.ablate`).
        controls: Layer-matched random draws per K, all different; fewer if there are not that many.
        seed: Of draws, intervals and tests, and of the default task; 0 or more.
        max_new_tokens: Longest answer, in tokens.
        rows: Variants in one batch.
        more: Kinds of random draws beside the layer-matched ones, as many of each per K: `any_layer` (of all layers) and `norm` (of nearly
            the same output norm, measured on the calibration text). Their perplexity is not measured.
        task: Needle prompts. Default: the bundled needles that detection never uses, over the bundled novels.
        perplexity: Measure plain text too, always under scope `all`: its loss is what the heads cost where nothing has to be retrieved.
        texts: (calibration, plain): token ids [n, T] without BOS, for the outputs that modes `mean` and `resample` put in, and for perplexity.
            Default: from the end of the task's haystack, which its prompts leave free (`plain_windows`).
        directory: Finished parts of the sweep and of the perplexity pass are kept there and not run again.
        report: Called with (done, total, remark); done and total count tokens of forward passes over all of the work.

    Returns:
        Every metric of every variant and prompt; `.table()` and `.summary()` sum it up.

    Raises:
        HeadwiseError: Heads of another model, a K without controls, a model without a tokenizer, an option that does not exist.
        PromptError: Prompts that do not fit, or too little text for perplexity or for calibration.
    """
    options = AblationOptions(tuple(top), mode, scope, controls, seed, max_new_tokens, rows, tuple(more))
    scores, task = given_scores(heads, model), task or default_task(model, seed)
    if texts is None and (perplexity or mode in CALIBRATED or "norm" in more):
        texts = plain_windows(task, model.positions)
    return _sweep(model, scores, task, options, perplexity, texts, directory, report)


def _sweep(
    model: Model, scores: HeadScores, task: Task, options: AblationOptions, perplexity: bool, texts: tuple[Tensor, Tensor] | None,
    directory: RunDirectory | None, report: Report,
) -> AblationResult:  # fmt: skip
    read_first = [with_bos(texts[0], model.tokenizer)] if texts else []
    norms = head_norms(model, read_first) if "norm" in options.more else None
    variants = head_variants(scores, options.top, options.controls, options.seed, options.more, norms)
    sets, places = distinct_sets(variants)
    for chosen in sets:
        model.check(chosen)
    calibration = texts[0] if texts and options.mode in CALIBRATED else None
    windows = with_bos(texts[1], model.tokenizer) if perplexity and texts else None
    without = partial(ablate, model.hf, mode=options.mode, **calibrated(model, options, calibration))
    sweep, plain = sweep_tokens(task, len(sets), options.scope), _plain_tokens(windows, variants)

    def swept(done: float, total: float, remark: str) -> None:
        report(sweep * done / total, sweep + plain, remark)

    def read(done: float, total: float, remark: str) -> None:
        report(sweep + plain * done / total, sweep + plain, remark)

    run = partial(
        _run_group, model, sets=sets, options=options, without=without, stop=stop_ids(model, task.composer.builder.opens_thought)
    )
    cells = run_groups(
        model, task, run, lambda cells: f"{len(all_info(cells))} prompts, {len(sets)} sets of heads", directory, swept
    )
    values = {metric: joined(cells, metric, axis=1)[places] for metric in METRICS}
    losses = np.empty((len(variants), 0))
    if windows is not None:
        measured = [variant.heads if _reads_plain(variant) else None for variant in variants]
        losses = losses_without(model.hf, windows, measured, without, directory, read)
    info = tuple(all_info(cells))
    stated = describe_run(model, scores, task, options, calibration) | {"shared_places": shared_places(info)}
    return AblationResult(variants, info, values, losses, options.seed, stated)


def calibrated(model: Model, options: AblationOptions, text: Tensor | None) -> dict[str, Any]:
    """What `ablate` needs beside the mode: outputs of the model's heads in other text.

    Args:
        model: The model.
        options: Whose mode counts, and whose seed draws the samples.
        text: Token ids [n, T] without BOS.

    Returns:
        `means`, `samples`, or nothing.
    """
    if text is None or options.mode not in CALIBRATED:
        return {}
    texts = [with_bos(text, model.tokenizer)]
    return (
        {"means": head_means(model, texts)}
        if options.mode == "mean"
        else {"samples": head_samples(model, texts, seed=options.seed)}
    )


def describe_run(
    model: Model, scores: HeadScores, task: Task, options: AblationOptions, calibration: Tensor | None = None
) -> dict[str, Any]:
    """All that decides the result as plain data; what a `RunDirectory` of `ablation_curve` is described by.

    Args:
        model: The model.
        scores: Scores of its heads.
        task: The prompts.
        options: What is taken away, and how it is measured.
        calibration: Text for modes `mean` and `resample`.

    Returns:
        JSON data; of the calibration text only a fingerprint.
    """
    run: dict[str, Any] = {
        "mode": options.mode,
        "scope": options.scope,
        "options": asdict(options),
        "head_file": describe_scores(scores),
    }
    if calibration is not None:
        run["calibration"] = digest_of(calibration)
    return run | describe_task(task) | describe_model(model)


def _plain_tokens(windows: Tensor | None, variants: Sequence[Variant]) -> int:
    """Tokens of the passes over plain text."""
    if windows is None:
        return 0
    return windows.numel() * len({frozenset(variant.heads) for variant in variants if _reads_plain(variant)})


def _reads_plain(variant: Variant) -> bool:
    """Whether perplexity is measured with these heads ablated."""
    return variant.draw < PERPLEXITY_DRAWS and variant.kind not in MORE_CONTROLS


def _run_group(model: Model, group: Group, sets: list[HeadSet], options: AblationOptions, without: Any, stop: Stops) -> Cell:
    """({metric: [set, prompt]}, info per prompt with the answer of the whole model)."""
    tables = {metric: np.zeros((len(sets), len(group.prompts))) for metric in METRICS}
    info = [dict(cell) for cell in group.info]
    gold = group.needle.answer
    with attached(model.hf):
        for leaf in variant_starts(model.hf, [prompt.ids for prompt in group.prompts], options.scope):
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


def variant_starts(model: Any, prompts: Sequence[Sequence[int]], scope: str) -> Iterator[Leaf]:
    """Prompts, read as far as all variants of them are the same.

    Args:
        model: A transformers model.
        prompts: Token ids.
        scope: Variants part at the last prompt token (`answer`), or at the first (`all`).

    Yields:
        Every prompt once, those of scope `answer` in the order that shares most text.
    """
    if scope == "all":
        yield from (Leaf(i, tuple(prompt), full_cache(model)) for i, prompt in enumerate(prompts))
        return
    for leaf in leaves(model, prompts):
        prefill(model, leaf.past, leaf.rest[:-1])
        yield leaf
