"""Causal heads: without its retrieval heads a model no longer finds the needle (Wu et al. 2024, sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from headwise.attention.ablate import MODES
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.retrieval_head import paraphrased
from headwise.claims.retrieval_head.scores import fitting_task, ranked, shares_of_time, usable_top
from headwise.claims.retrieval_head.sizes import MODE, REMOVED, RETRIEVAL, SCOPE, Sizes, near_share, sizes_of
from headwise.claims.retrieval_head.sweeps import DRAWS, HALF, Sweep, swept
from headwise.evaluation.ablation import AblationOptions
from headwise.evaluation.perplexity import plain_windows
from headwise.evaluation.variants import MORE_CONTROLS
from headwise.heads import HeadScores, PromptError
from headwise.heads.progress import Report
from headwise.prompts.grid import Task
from headwise.stats.paired import bootstrap_mean

FEW = 4  # the card's "top 2 to 4 heads" of a small model
PLAIN_TOKENS = 128  # of each window of plain text
PARTS = {"heads": 430.0, "ablation": 500.0, "modes": 400.0, "every position": 200.0, "paraphrased": 400.0}  # rough seconds on a real model
KINDS = {"layer": "random", "any": "any_layer", "norm": "norm"}  # claim -> kind of random draws


def measure(bench: Bench) -> Measured:
    """The sweep, the other modes and the other scope on the same prompts, and paraphrased needles."""
    sizes, part = sizes_of(bench), shares_of_time(bench, PARTS)
    scores = ranked(bench, sizes, part("heads"))
    task, texts = _prompts(bench, sizes)
    top = usable_top(sizes, scores)
    ks = Ks(scores, top)
    more = AblationOptions(top, MODE, SCOPE, sizes.controls, sizes.seed, more=MORE_CONTROLS)
    main = swept(bench, scores, task, more, "ablate", texts, report=part("ablation"))
    modes = {MODE: main} | _other_modes(bench, scores, task, texts, sizes, part("modes"))
    every = AblationOptions(top, MODE, "all", 1, sizes.seed)
    everywhere = swept(bench, scores, task, every, "ablate-all", texts, perplexity=False, report=part("every position"))
    reworded, beside = paraphrased.measure(bench, scores, sizes, part("paraphrased"))
    findings = causal(main, modes, ks) | section_six(main, modes, everywhere, ks) | reworded
    tables = {mode: sweep.table("recall", "exact") for mode, sweep in modes.items()}
    details = {
        "items": len(main.result.items), "needles": len(task.needles), "heads": ks.heads, "k": ks.share, "k over 0.1": ks.over,
        "first k that halves": halved_at(main, top), "modes": tables, "perplexity": main.table("perplexity"),
        "every position": everywhere.table("recall"), "paraphrased": beside,
    }  # fmt: skip
    return Measured(findings, details)


class Ks:
    """Numbers of heads that claims speak of.

    Attributes:
        top: All of them.
        heads: How many heads are scored.
        share: The one nearest to 5 % of the heads.
        over: The one nearest to the number of heads over 0.1.
    """

    def __init__(self, scores: HeadScores, top: tuple[int, ...]) -> None:
        self.top, self.heads = top, len(scores.ranking())
        self.share = near_share(top, self.heads, REMOVED)
        self.over = near_share(top, 1, int((scores.values > RETRIEVAL).sum()))


def _prompts(bench: Bench, sizes: Sizes) -> tuple[Task, tuple[Tensor, Tensor]]:
    """Needles that detection never saw, and text for norms, means and perplexity."""
    try:
        task = fitting_task(bench.model, "test", (sizes.ablation_length,), sizes.ablation_places, sizes)
        calibration, plain = plain_windows(task, bench.model.positions)
    except PromptError as error:
        raise NotTestable(str(error)) from error
    return task, (calibration, plain[:, :PLAIN_TOKENS])


def _other_modes(
    bench: Bench, scores: HeadScores, task: Task, texts: tuple[Tensor, Tensor], sizes: Sizes, report: Report
) -> dict[str, Sweep]:
    found: dict[str, Sweep] = {}
    for mode in (mode for mode in MODES if mode in ("uniform", "mean")):
        options = AblationOptions(usable_top(sizes, scores), mode, SCOPE, sizes.mode_controls, sizes.seed)
        found[mode] = swept(bench, scores, task, options, f"ablate-{mode}", texts, perplexity=False, report=report)
    return found


def halved_at(sweep: Sweep, top: tuple[int, ...]) -> int:
    """The first number of heads without which less than half of the recall is left; 0: none."""
    whole = sweep.row("recall", "none")["mean"]
    return next((k for k in sorted(top) if sweep.row("recall", "top", k)["mean"] < HALF * whole), 0)


def causal(main: Sweep, modes: dict[str, Sweep], ks: Ks) -> dict[str, Finding]:
    """The registered claims."""
    half, k = halved_at(main, ks.top), ks.share
    whole: dict[str, Number] = {"recall": main.mean("recall", "none")}

    def left(sweep: Sweep) -> dict[str, Number]:
        left_by = {"left": sweep.left("recall", "top", k), "random_left": sweep.left("recall", "random", k)}
        return left_by | {"top": sweep.mean("recall", "top", k), "k": k}

    findings = {"heads.causal.recall": Finding(whole | left(main))}
    for name, kind in KINDS.items():
        numbers = main.random_costs_less("recall", kind, half or k) | {"halved_at": half}
        findings[f"heads.causal.{name}"] = Finding(whole | numbers, main.p("recall", kind, half or k))
    by_mode = {mode: left(sweep) for mode, sweep in modes.items()}
    worst = max(by_mode.values(), key=lambda one: _mean(one["left"]))
    named: dict[str, Number] = {f"{mode}_left": one["left"] for mode, one in by_mode.items()}
    findings["heads.causal.modes"] = Finding(whole | {"worst_left": worst["left"], "random_left": worst["random_left"], "k": k} | named)
    findings["heads.causal.text"] = Finding(plain_text(main, half or k))
    return findings


def _mean(number: Number) -> float:
    return float(number[0] if isinstance(number, tuple) else number)


def plain_text(sweep: Sweep, k: int) -> dict[str, Number]:
    """Perplexity without k heads over that of the whole model, with its interval over windows."""
    losses = sweep.result.losses

    def ratio(kind: Any) -> Number:
        rows = [i for i in sweep.result.rows_of(kind, k) if not np.isnan(losses[i]).any()]
        found = bootstrap_mean(losses[rows].mean(axis=0) - losses[0], draws=DRAWS, seed=sweep.result.seed)
        mean, low, high = (float(np.exp(end)) for end in found)
        return mean, low, high

    whole = float(np.exp(losses[0].mean()))
    return {"ratio": ratio("top"), "random_ratio": ratio("random"), "weakest_ratio": ratio("bottom"), "perplexity": whole, "k": k}


def section_six(main: Sweep, modes: dict[str, Sweep], everywhere: Sweep, ks: Ks) -> dict[str, Finding]:
    """Claims 2 to 4 of the card's section 6, and recall without the heads over 0.1."""
    parts: dict[str, Callable[[], Finding]] = {
        "copy.exact": partial(_exact, main, ks),
        "copy.over": partial(_over, main, ks),
        "copy.modes_near": partial(_modes_near, modes, ks),
        "copy.answer_scope": partial(_answer_scope, main, everywhere, ks),
    }
    return {key: part() for key, part in parts.items()}


def _exact(main: Sweep, ks: Ks) -> Finding:
    if FEW not in ks.top:
        return Finding.none(f"too few heads: {ks.heads}")
    mean = partial(main.mean, "exact")
    return Finding({"whole": mean("none"), "top": mean("top", FEW), "random": mean("random", FEW), "k": FEW})


def _over(main: Sweep, ks: Ks) -> Finding:
    numbers: dict[str, Number] = {"recall": main.mean("recall", "none"), "left": main.left("recall", "top", ks.over)}
    return Finding(numbers | {"random_left": main.left("recall", "random", ks.over), "k": ks.over})


def _modes_near(modes: dict[str, Sweep], ks: Ks) -> Finding:
    k, seed = ks.share, modes[MODE].result.seed
    apart = modes["uniform"].units("recall", "top", k) - modes["mean"].units("recall", "top", k)
    mean, low, high = bootstrap_mean(apart, draws=DRAWS, seed=seed)
    numbers: dict[str, Number] = {"recall": modes[MODE].mean("recall", "none"), "apart": abs(mean), "difference": (mean, low, high), "k": k}
    return Finding(numbers | {mode: sweep.mean("recall", "top", k) for mode, sweep in modes.items()})


def _answer_scope(main: Sweep, everywhere: Sweep, ks: Ks) -> Finding:
    """At the first number of heads that halves recall where they are removed everywhere."""
    k = halved_at(everywhere, ks.top) or ks.share
    drops = [sweep.units("recall", "none") - sweep.units("recall", "top", k) for sweep in (main, everywhere)]
    picks = np.random.default_rng(main.result.seed).integers(len(drops[0]), size=(DRAWS, len(drops[0])))
    means = [drop[picks].mean(axis=1) for drop in drops]
    if drops[1].mean() <= 0:
        return Finding.none("removing the top heads at every position costs nothing")
    drawn = np.where(means[1] > 0, means[0] / np.where(means[1] > 0, means[1], 1.0), np.nan)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    kept: Number = (float(drops[0].mean() / drops[1].mean()), float(low), float(high))
    return Finding(
        {
            "recall": main.mean("recall", "none"),
            "kept": kept,
            "answer_loss": main.loss("recall", "top", k),
            "full_loss": everywhere.loss("recall", "top", k),
            "k": k,
        }
    )
