"""Semantic scores beside copy scores: which heads they name, what extreme depths do to the ranking, and what ablating those heads costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.claims.cache_runs import PARTS, Runs, Test, Values, compared, largest, resampled, smallest
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.evaluation.ablation import ablation_curve
from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.perplexity import text_windows
from headwise.heads import HeadScores
from headwise.prompts.grid import describe_task
from headwise.stats.agreement import top_overlap
from headwise.stats.ranks import spearman

FEW = 4  # best heads of a layer
DRAWS = 3
STRONGEST = 8
TOP = (2, 4, 8)
CONTROLS = 20
MODES = ("zero", "uniform", "mean")
MEAN_TEXT = (4, 256)  # windows and tokens of the text that gives mean outputs


def agreement(one: Values, other: Values, k: int = FEW) -> list[float]:
    """[layer] share of the k best heads that both tables name."""
    return [top_overlap(a, b, k) for a, b in zip(one, other, strict=True)]


def measure_scores(bench: Bench) -> Measured:
    """Zeros, lifts, agreement of the two scores, and depths."""
    runs = Runs(bench)
    pairs = [(runs.heads("copy", seed), runs.heads("semantic", seed)) for seed in range(runs.sizes.seeds)]
    solved = min(share_solved(scores) for pair in pairs for scores in pair)
    numbers, details = _compared(pairs, runs.model.heads.full_layers)
    depths, more = _depths([semantic for _, semantic in pairs], runs.model.heads.full_layers)
    findings = {f"compresskv.{name}": Finding(each | {"solved": round(solved, 4)}) for name, each in (numbers | depths).items()}
    return Measured(findings, details | more)


def share_solved(scores: HeadScores) -> float:
    """Of the detection questions."""
    return float(scores.provenance["solved"] / scores.provenance["runs"])


def _compared(pairs: list[tuple[HeadScores, HeadScores]], full: list[int]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Numbers of the claims that set the two scores side by side, and what a table needs."""
    copy, semantic = (np.stack([pair[i].values[full].ravel() for pair in pairs]) for i in (0, 1))
    lift = np.stack([pair[1].tables["lift"][full].ravel() for pair in pairs])
    # A head counts once, whatever the number of seeds: an interval over heads and seeds would be too narrow.
    tail, copying, no_copy, no_semantic = (table.mean(axis=0) for table in (lift > 3, copy > 0.1, copy == 0, semantic == 0))
    shared = float(np.mean([top_overlap(a.values, b.values, STRONGEST) for a, b in pairs]))
    numbers: dict[str, dict[str, Any]] = {
        "copy_zero": {"copy_zero": interval(no_copy), "semantic_zero": interval(no_semantic)},
        "scores_agree": {"correlation": resampled(_mean_correlation(len(pairs)), *_columns(pairs, full)), "shared": round(shared, 4)},
        "medium_heads": {"difference": interval(tail - copying), "copying": interval(copying), "tail": interval(tail)},
    }
    fewer = [float(((a.values[full] > 0).sum(axis=1) < FEW).sum()) for a, _ in pairs]
    strongest = {name: [str(head) for head in scores.ranking()[:STRONGEST]] for name, scores in zip(("copy", "semantic"), pairs[0], strict=True)}
    return numbers, {"layers_with_fewer_than_4_copy_heads": fewer, "strongest": strongest}


def _columns(pairs: list[tuple[HeadScores, HeadScores]], full: list[int]) -> list[Values]:
    return [scores.values[full].ravel() for pair in pairs for scores in pair]


def _mean_correlation(seeds: int) -> Any:
    """Spearman's correlation of the columns 2 i and 2 i + 1, mean over i."""
    return lambda *columns: float(np.mean([spearman(columns[2 * i], columns[2 * i + 1]) for i in range(seeds)]))


def _depths(found: list[HeadScores], full: list[int]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Rankings from one extreme depth, from as few questions between, and from all, against the one from the depths between."""
    shares: dict[str, list[float]] = {"depth 0": [], "depth 1": [], "as few between": [], "all depths": []}
    for seed, scores in enumerate(found):
        runs, rng = np.asarray(scores.runs, dtype=np.float64)[:, full], np.random.default_rng([seed, 43])
        depths = np.array([info["depth"] for info in scores.run_info])
        between = (depths > 0) & (depths < 1)
        if min((depths == 0).sum(), (depths == 1).sum(), between.sum() - 1) < 1:
            raise NotTestable("needs needle questions answered at depth 0, at depth 1 and between")
        middle = runs[between].mean(axis=0)
        for name, extreme in (("depth 0", 0), ("depth 1", 1)):
            shares[name] += agreement(runs[depths == extreme].mean(axis=0), middle)
        few, places = int((depths == 0).sum()), np.flatnonzero(between)
        drawn = [_split(runs, rng.permutation(places), min(few, len(places) - 1)) for _ in range(DRAWS)]
        shares["as few between"] += np.mean(drawn, axis=0).tolist()
        shares["all depths"] += agreement(runs.mean(axis=0), middle)
    ends = {name: interval(values) for name, values in shares.items()}
    extremes = np.mean([shares["depth 0"], shares["depth 1"]], axis=0)
    numbers = {
        "depth_contamination": {"agreement": max(ends["depth 0"], ends["depth 1"]), "as_few": ends["as few between"]},
        "extremes_dropped": {"difference": interval(np.array(shares["as few between"]) - extremes), "all_depths": ends["all depths"]},
    }
    return numbers, {"agreement": ends, "chance": round(FEW / found[0].shape[1], 4)}


def _split(runs: Values, order: Values, few: int) -> list[float]:
    return agreement(runs[order[:few]].mean(axis=0), runs[order[few:]].mean(axis=0))


# Ablation


def measure_ablation(bench: Bench) -> Measured:
    """Exact answers without the top heads by either score, and without random ones of their layers, in three modes."""
    runs = Runs(bench)
    found = {(mode, score): _curve(runs, score, mode) for mode in MODES for score in ("semantic", "copy")}
    exact = {
        (mode, score, kind): _by_needle(curve, kind, FEW)
        for (mode, score), curve in found.items() for kind in ("none", "top", "random")
    }  # fmt: skip
    full = {"full": interval(exact["zero", "semantic", "none"])}
    against = {mode: compared(exact[mode, "semantic", "random"], exact[mode, "semantic", "top"]) for mode in MODES}
    apart = {mode: compared(exact[mode, "copy", "top"], exact[mode, "semantic", "top"]) for mode in MODES}
    worst = min(MODES, key=lambda mode: against[mode].ends[0])
    needed = smallest(list(against.values()))
    widest = largest([Test(_turned(test.ends), test.p) for test in apart.values()])
    scores = {name: runs.heads(name) for name in ("copy", "semantic")}
    shared = {k: len(set(scores["copy"].top(k)) & set(scores["semantic"].top(k))) for k in TOP}
    random = {"random": interval(exact[worst, "semantic", "random"])}
    findings = {
        "compresskv.semantic_needed": Finding(full | random | {"difference": needed.ends}, needed.p),
        "compresskv.semantic_like_copy": Finding(full | {"apart": widest.ends, "shared": shared[FEW]}),
        "compresskv.masking_gap": Finding(full | random | {"difference": apart["uniform"].ends}, apart["uniform"].p),
    }
    return Measured(findings, {"shared": {str(k): count for k, count in shared.items()}, "exact": _table(found)})


def _turned(ends: tuple[float, float, float]) -> tuple[float, float, float]:
    """The ends of a difference whose sign is of no interest."""
    return ends if ends[0] >= 0 else (-ends[0], -ends[2], -ends[1])


def _curve(runs: Runs, score: str, mode: str) -> AblationResult:
    bench, heads = runs.bench, runs.heads(score)
    task = runs.needles("test", (0.3, 0.7), 0).first_needles(runs.sizes.items)
    means = text_windows(runs.haystack, *MEAN_TEXT, PARTS["detect"], bench.seed)
    options = {"mode": mode, "controls": bench.pick(CONTROLS, 3), "seed": bench.seed}
    tops = [k for k in bench.pick(TOP, (FEW,)) if 2 * k < np.isfinite(heads.values).sum()]
    ranked = [str(head) for head in heads.ranking()]
    cells = runs.cells(f"ablation-{mode}-{score}", task=describe_task(task), ranked=ranked, top=tops, **options)
    given: dict[str, Any] = options | {"task": task, "texts": (means, means), "directory": cells, "report": bench.report}
    return ablation_curve(runs.model, heads, tops, perplexity=False, **given)


def _by_needle(curve: AblationResult, kind: Any, k: int) -> Values:
    """[needle] exact answers of one kind, mean over draws and over the prompts of a needle."""
    rows = curve.values["exact"][curve.rows_of(kind, 0 if kind == "none" else k)].mean(axis=0)
    needles = np.array([item["needle"] for item in curve.items])
    return np.array([rows[needles == needle].mean() for needle in np.unique(needles)])


def _table(found: dict[tuple[str, str], AblationResult]) -> dict[str, Any]:
    """Mode, score, kind, K -> exact answers with their interval."""
    out: dict[str, Any] = {}
    for (mode, score), curve in found.items():
        for row in curve.summary():
            if row["metric"] == "exact":
                out[f"{mode}, {score}, {row['kind']} {row['k']}"] = [round(row[name], 4) for name in ("mean", "low", "high")]
    return out
