"""What a map of copy scores shows: how many heads copy, how steadily, in which contexts, and whether other prompts find the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.claims.retrieval_head import untrained
from headwise.claims.retrieval_head.active import context_dependence, step_facts, traced_steps
from headwise.claims.retrieval_head.same_heads import reliability, retests
from headwise.claims.retrieval_head.scores import (
    Values,
    detected,
    needle_means,
    over_needles,
    recall_of,
    shares_of_time,
    solved_share,
    with_ends,
)  # fmt: skip
from headwise.claims.retrieval_head.sizes import RETRIEVAL, STRONG, Sizes, sizes_of
from headwise.heads import HeadScores, HeadwiseError
from headwise.stats.agreement import gini, top_overlap

OFTEN, WEAK = 0.9, 0.5  # "active in most contexts, yet copies little": frequency over, score below
FEW_RUNS, FEW_TOP, FEW_DRAWS = 5, 10, 200
NEED_A_RANKING = (
    "heads.dynamic", "copy.often_weak", "copy.few_runs", *(f"heads.intrinsic.{name}" for name in ("length", "chat", "needles"))
)  # fmt: skip
PARTS = {"heads": 430.0, "other prompts": 540.0, "steps": 60.0, "untrained": 30.0}  # rough seconds on a real model


def measure(bench: Bench) -> Measured:
    """Detection, its map, the same on other prompts, and an untrained copy."""
    sizes = sizes_of(bench)
    part = shares_of_time(bench, PARTS)
    scores = detected(bench, sizes, part("heads"))
    findings = {
        "heads.universal": universal(scores),
        "heads.sparse": sparse(scores),
        "copy.concentrated": concentrated(scores),
        "copy.frequency": Finding({"below": int((scores.frequency < scores.values - 1e-9).sum())}),
    }
    maps: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    try:
        scores.ranking()
    except HeadwiseError as error:  # all heads score the same
        findings |= {key: Finding.none(f"no head stands out: {error}") for key in NEED_A_RANKING}
    else:
        findings |= {"heads.dynamic": dynamic(scores, sizes.seed), "copy.often_weak": often_weak(scores)}
        findings["copy.few_runs"] = few_runs(scores, sizes.seed)
        again, maps = retests(bench, scores, sizes, part("other prompts"))
        findings |= {f"heads.intrinsic.{name}": finding for name, finding in again.items()}
        steps = step_facts(traced_steps(bench.model, scores, sizes, part("steps")))
    part("untrained")(0, 1, "")
    control = _untrained(bench, sizes)
    findings["copy.untrained"] = Finding(control | {"trained_max": float(np.nanmax(scores.values))})
    return Measured(findings, _details(scores, sizes.seed) | {"again": maps, "steps": steps, "untrained": control})


def _untrained(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    return untrained.heads_without_retrieval(untrained.untrained(bench.model, sizes.seed), sizes)


def known(values: Values) -> Values:
    """The scores of all scored heads, flat."""
    return np.asarray(values[~np.isnan(values)])


def universal(scores: HeadScores) -> Finding:
    """Heads that copy, and the strongest of them."""
    return Finding(
        {
            "recall": recall_of(scores),
            "over": int((scores.values > RETRIEVAL).sum()),
            "strongest": over_needles(scores, lambda values: float(np.nanmax(values))),
        }
    )


def sparse(scores: HeadScores) -> Finding:
    """The share of heads that copy."""

    def share(limit: float) -> Any:
        return over_needles(scores, lambda values: float((known(values) > limit).mean()))

    return Finding({"recall": recall_of(scores), "over_share": share(RETRIEVAL), "strong_share": share(STRONG)})


def concentrated(scores: HeadScores) -> Finding:
    """Whether a minority has most of the score."""
    share = float((known(scores.values) > RETRIEVAL).mean())
    return Finding({"recall": recall_of(scores), "over_share": share, "gini": over_needles(scores, gini)})


def dynamic(scores: HeadScores, seed: int) -> Finding:
    """Heads that always copy and heads that do not, and whether the needle decides."""
    found = context_dependence(scores, seed)
    if not found:
        return Finding.none("solved runs of two needles, of one of them twice, are needed")
    always = int((scores.frequency == 1).sum())
    over = int((scores.values > RETRIEVAL).sum())
    numbers = {"recall": recall_of(scores), "always_on": always, "others": over - always, "retrieval_heads": over}
    numbers |= {"difference": found["within"] - found["between"], "within": found["within"], "between": found["between"]}
    return Finding(numbers, found["p"])


def often_weak(scores: HeadScores) -> Finding:
    """Heads that copy in nearly every run, and little."""
    heads = int(((scores.frequency > OFTEN) & (scores.values < WEAK)).sum())
    return Finding({"recall": recall_of(scores), "heads": heads, "always_on": int((scores.frequency == 1).sum())})


def few_runs(scores: HeadScores, seed: int) -> Finding:
    """Share of the final top heads that the mean of a few random runs also has on top."""
    runs = np.asarray(scores.runs)
    rng, heads = np.random.default_rng(seed), len(known(scores.values))
    drawn = {
        count: np.array(
            [top_overlap(runs[rng.choice(len(runs), count, replace=False)].mean(axis=0), scores.values, FEW_TOP) for _ in range(FEW_DRAWS)]
        )
        for count in (1, FEW_RUNS, 20)
        if count <= len(runs)
    }
    if FEW_RUNS not in drawn:
        return Finding.none(f"needs more than {len(runs)} solved runs")
    shared = {count: with_ends(float(values.mean()), values) for count, values in drawn.items()}
    beside: dict[str, Number] = {f"shared_{count}": number for count, number in shared.items() if count != FEW_RUNS}
    beside |= {"runs": len(runs), "shared": shared[FEW_RUNS], "by_chance": FEW_TOP / heads}
    return Finding(beside)


def _details(scores: HeadScores, seed: int) -> dict[str, Any]:
    """The tables behind the findings."""
    order = [head for head in _by_score(scores) if scores.values[head] > 0 or scores.frequency[head] > 0]
    halves = needle_means(scores)
    return {
        "runs": scores.provenance["runs"],
        "solved": scores.provenance["solved"],
        "solved share": solved_share(scores),
        "exact": float(np.mean([cell["exact"] for cell in scores.provenance["cells"]])),
        "lengths": list(scores.provenance["grid"]["lengths"]),
        "bins": _bins(known(scores.values)),
        "heads": [
            {"head": f"L{i}H{j}", "score": float(scores.values[i, j]), "frequency": float(scores.frequency[i, j])} for i, j in order
        ],
        "values": scores.values.tolist(),
        "reliability": reliability(scores, seed),
        "needles": len(halves),
    }


def _bins(values: Values) -> dict[str, int]:
    """Heads by score, in the ranges of the paper's figure 3."""
    return {
        "0": int((values == 0).sum()),
        "(0, 0.1)": int(((values > 0) & (values < RETRIEVAL)).sum()),
        "[0.1, 0.5)": int(((values >= RETRIEVAL) & (values < STRONG)).sum()),
        "[0.5, 1]": int((values >= STRONG).sum()),
    }


def _by_score(scores: HeadScores) -> list[tuple[int, int]]:
    flat = np.argsort(-np.nan_to_num(scores.values, nan=-1.0), axis=None, kind="stable")
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(flat, scores.shape), strict=True)]
