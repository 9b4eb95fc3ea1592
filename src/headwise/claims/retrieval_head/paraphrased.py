"""Beyond literal copying: needles whose questions share no word with them (in the manner of NoLiMa, Modarressi et al. 2025, arXiv 2502.05167).

The same needles are asked in their own words, too, so that nothing but the wording of the question differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench
from headwise.claims.retrieval_head.scores import fitting_task, scored, with_ends
from headwise.claims.retrieval_head.sizes import MODE, SCOPE, Sizes
from headwise.claims.retrieval_head.sweeps import DRAWS, Sweep, swept
from headwise.evaluation.ablation import AblationOptions
from headwise.evaluation.perplexity import plain_windows
from headwise.heads import HeadScores, NoSuccessfulRunError, PromptError
from headwise.heads.progress import Report
from headwise.methods.copy.options import Copy
from headwise.prompts.needles import bundled_needles
from headwise.stats.agreement import pearson
from headwise.stats.paired import bootstrap_mean, sign_flip_test

SETS = ("literal", "paraphrased")
SAMPLES = 6


class Asked(NamedTuple):
    """One set of needles.

    Attributes:
        recall: [needle] mean recall over its runs in the longer contexts.
        sweep: Recall in the shorter contexts, with and without the heads of detection; None: the model finds none of them at all.
        details: For pages.
    """

    recall: NDArray[np.float64]
    sweep: Sweep | None
    details: dict[str, Any]


def measure(bench: Bench, scores: HeadScores, sizes: Sizes, report: Report) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Recall of both kinds of question, and what ablating the heads of detection costs each: findings by key, and tables behind them."""
    sizes = replace(sizes, needles=len(bundled_needles(SETS[0])))
    keys = ("heads.paraphrased.recall", "heads.paraphrased.causal")
    if 2 * sizes.paraphrased_k > len(scores.ranking()):
        return {key: Finding.none(f"too few heads: {len(scores.ranking())}") for key in keys}, {}
    try:
        found = {kind: _asked(bench, scores, sizes, kind, report) for kind in SETS}
    except PromptError as error:
        return {key: Finding.none(str(error)) for key in keys}, {}
    return judged(found, sizes), {kind: asked.details for kind, asked in found.items()}


def judged(found: dict[str, Asked], sizes: Sizes) -> dict[str, Finding]:
    """The findings of both claims."""
    literal, other, seed = found["literal"].recall, found["paraphrased"].recall, sizes.seed
    numbers: dict[str, Number] = {
        "literal": _mean(literal, seed),
        "paraphrased": _mean(other, seed),
        "left": _ratio(other, literal, seed),
        "tokens": sizes.paraphrased_lengths[1],
    }
    recall = Finding(numbers, sign_flip_test(other - literal, seed=seed))
    sweep, k = found["paraphrased"].sweep, sizes.paraphrased_k
    if sweep is None:
        causal = Finding.none("the whole model finds no paraphrased needle")
    else:
        mean, left = sweep.mean("recall", "none"), sweep.left("recall", "top", k)
        causal = Finding({"recall": mean, "left": left, "random_left": sweep.left("recall", "random", k), "k": k})
    return {"heads.paraphrased.recall": recall, "heads.paraphrased.causal": causal}


def _mean(values: NDArray[np.float64], seed: int) -> Number:
    mean, low, high = bootstrap_mean(values, seed=seed)
    return mean, low, high


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int) -> Number:
    """Ratio of two means over the same needles, with its interval; NaN: the lower one is 0."""
    if under.mean() <= 0:
        return float("nan")
    picks = np.random.default_rng(seed).integers(len(under), size=(DRAWS, len(under)))
    means = under[picks].mean(axis=1)
    drawn = np.where(means > 0, over[picks].mean(axis=1) / np.where(means > 0, means, 1.0), np.nan)
    return with_ends(float(over.mean() / under.mean()), drawn)


def _asked(bench: Bench, scores: HeadScores, sizes: Sizes, kind: str, report: Report) -> Asked:
    short, long = sizes.paraphrased_lengths
    task = fitting_task(bench.model, kind, (long,), sizes.paraphrased_places, sizes)
    try:
        own = scored(bench, task, report, Copy(min_recall=0.0))
    except NoSuccessfulRunError:
        return Asked(np.zeros(len(task.needles)), None, {"by_needle": [0.0] * len(task.needles)})
    cells = own.provenance["cells"]
    needles = sorted({cell["needle"] for cell in cells})
    recall = np.array([np.mean([cell["recall"] for cell in cells if cell["needle"] == needle]) for needle in needles])
    brief = fitting_task(bench.model, kind, (short,), sizes.paraphrased_places, sizes)
    options = AblationOptions((sizes.paraphrased_k,), MODE, SCOPE, sizes.paraphrased_controls, sizes.seed)
    sweep = swept(bench, scores, brief, options, f"{kind}-ablate", plain_windows(brief, bench.model.positions), perplexity=False, report=report)
    details = {
        "exact": float(np.mean([cell["exact"] for cell in cells])),
        "by_needle": recall.tolist(),
        "pearson": pearson(scores.values, own.values),
        "ablated": sweep.table("recall"),
        "samples": [{"needle": cell["needle"], "answer": cell["answer"]} for cell in cells[:: max(1, len(cells) // SAMPLES)]],
    }
    return Asked(recall, sweep, details)
