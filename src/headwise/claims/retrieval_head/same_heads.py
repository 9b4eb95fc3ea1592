"""Intrinsic heads: whether two score maps are about the same heads (Wu et al. 2024, sec. 3.3).

The ceiling of a correlation is what the noise of both maps leaves of 1: the root of the product of their reliabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench
from headwise.claims.retrieval_head.scores import (
    Z,
    at_length,
    fitting_task,
    needle_means,
    scored,
    solved_share,
    variance,
    with_ends,
    without_each_needle,
)
from headwise.claims.retrieval_head.sizes import Sizes
from headwise.heads import HeadScores, NoSuccessfulRunError, PromptError
from headwise.heads.progress import Report
from headwise.prompts.grid import Task, even_depths
from headwise.stats.agreement import pearson, split_half_reliability, top_overlap

SHUFFLES = 1000
TOP = 8
MIN_NEEDLES = 4
MOST = 1 - 1e-12  # of a correlation, for its z


def reliability(scores: HeadScores, seed: int) -> float:
    """Expected correlation with a map from as many other needles: halves of the needles, corrected to full length.

    The correction is Spearman and Brown's, 2 r / (1 + r) of the correlation r of two halves.

    Args:
        scores: With per-run values.
        seed: Of the halves.

    Returns:
        At most 1; NaN below `MIN_NEEDLES` needles.
    """
    runs = needle_means(scores)
    if len(runs) < MIN_NEEDLES:
        return float("nan")
    half = split_half_reliability(runs, seed=seed)
    return 2 * half / (1 + half)


def shuffled_range(a: HeadScores, b: HeadScores, seed: int) -> tuple[float, float, float]:
    """Correlation when the heads of `b` are shuffled inside each layer: mean and 95 % range, what layers alone explain, plus chance.

    Args:
        a: Scores that stay.
        b: Scores that are shuffled, of the same shape.
        seed: Of the shuffles.
    """
    rng = np.random.default_rng([seed, 31])
    found = np.array([pearson(a.values, rng.permuted(b.values, axis=1)) for _ in range(SHUFFLES)])
    return with_ends(float(np.nanmean(found)), found)


def correlation(a: HeadScores, b: HeadScores) -> Number:
    """Pearson correlation of two score maps, with its 95 % interval over the needles of both, left out one at a time (in Fisher's z)."""
    value = pearson(a.values, b.values)
    parts = [
        [pearson(left, b.values) for left in without_each_needle(a)],
        [pearson(a.values, left) for left in without_each_needle(b)],
    ]
    half = Z * sum(variance(np.arctanh(np.clip(part, -MOST, MOST))) for part in parts) ** 0.5
    z = np.arctanh(np.clip(value, -MOST, MOST))
    return float(value), float(np.tanh(z - half)), float(np.tanh(z + half))


def compared(a: HeadScores, b: HeadScores, seed: int) -> dict[str, Number]:
    """Correlation of two score maps, with its interval over the needles of both, and what it is compared with."""
    product = reliability(a, seed) * reliability(b, seed)
    layers = (np.nanmean(scores.values, axis=1) for scores in (a, b))
    return {
        "pearson": correlation(a, b),
        "ceiling": float(np.sqrt(max(0.0, product))),
        "shuffled": shuffled_range(a, b, seed),
        "layers_alone": pearson(*layers),
        "top_8_shared": top_overlap(a.values, b.values, TOP),
    }


def retests(bench: Bench, scores: HeadScores, sizes: Sizes, report: Report) -> tuple[dict[str, Finding], dict[str, Any]]:
    """The model against itself in longer contexts, in its chat template, and on the needles of the other half.

    Args:
        bench: Of the model.
        scores: Of its detection.
        sizes: What is asked.
        report: Progress.

    Returns:
        length, chat, needles -> finding; and the score maps behind them.
    """
    model, short, depths = bench.model, (sizes.lengths[0],), even_depths(sizes.depths)
    tasks: dict[str, Callable[[], Task]] = {
        "length": lambda: fitting_task(model, "detect", (sizes.long_length,), sizes.long_depths, sizes, sizes.long_needles),
        "chat": lambda: fitting_task(model, "detect", short, depths, sizes, chat=True),
        "needles": lambda: fitting_task(model, "test", short, depths, sizes),
    }
    findings, maps = {}, {}
    for number, (name, task) in enumerate(tasks.items()):
        report(number, len(tasks), name)
        try:
            again = scored(bench, task())
            first = at_length(scores, min(scores.provenance["grid"]["lengths"]))
        except (NoSuccessfulRunError, PromptError) as error:
            findings[name] = Finding.none(str(error))
            continue
        solved = min(solved_share(first), solved_share(again))
        counts = {"solved_share": solved, "solved": again.provenance["solved"], "runs": again.provenance["runs"]}
        findings[name] = Finding(counts | compared(first, again, sizes.seed))
        maps[name] = again.values.tolist()
    return findings, maps
