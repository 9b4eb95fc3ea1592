"""Property 5, causal: without its retrieval heads a model no longer finds the needle (Wu et al. 2024, sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from headwise.attention.ablate import MODES
from headwise.evaluation.ablation import AblationOptions, ablation_curve, describe_run
from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.perplexity import plain_windows
from headwise.evaluation.variants import MORE_CONTROLS
from headwise.heads import HeadScores, PromptError
from headwise.models.model import Model
from headwise.prompts.grid import Task, even_depths
from headwise_lab.properties.detection import Evidence, needle_task, open_directory
from headwise_lab.properties.paper import REMOVED, RETRIEVAL
from headwise_lab.properties.settings import RealSettings, Settings, near_share
from headwise_lab.properties.verdict import Check, Property, missing, p_text, share, span_of

HALF = 0.5  # of the whole model's recall
MUCH_LESS = 1 / 3  # the most that random heads may cost, as a share of what the top heads cost
LEVEL = 0.05
PLAIN_TOKENS = 128  # of each window of plain text
DRAWN = {"random": "random heads", "any_layer": "random heads of any layer", "norm": "random heads of the same output norm"}
PERPLEXITY = 1.1  # method card, claim 2: plain text changes by less than 10 %


def usable_top(settings: Settings, scores: HeadScores) -> tuple[int, ...]:
    """The numbers of heads that leave enough others for the control."""
    return tuple(k for k in settings.top if 2 * k <= len(scores.ranking()))


def measure(model: Model, scores: HeadScores, settings: Settings, work: Path | None) -> dict[str, Any]:
    """Needle recall and perplexity without the top K, K random and the K weakest heads, on needles that detection never saw.

    A real model also gets draws of any layer and of nearly the same output norm, and the other two modes on the same prompts.

    Args:
        model: The model.
        scores: Of its heads, found on the detection needles.
        settings: Sizes, mode and scope.
        work: Folder for finished parts; None keeps nothing.

    Returns:
        Plain data with the ablation's summary in `rows`; or `why` there is none.
    """
    top = usable_top(settings, scores)
    real = isinstance(settings, RealSettings)
    depths = settings.ablation_places if isinstance(settings, RealSettings) else even_depths(settings.ablation_depths)
    try:
        task = needle_task(model, "test", (settings.ablation_length,), depths, settings)
        calibration, plain = plain_windows(task, model.positions)
    except PromptError as error:
        return {"why": str(error)}
    if not top:
        return {"why": f"too few heads for a control: {len(scores.ranking())}"}
    texts = calibration, plain[:, :PLAIN_TOKENS]
    more = MORE_CONTROLS if real else ()
    options = AblationOptions(top, settings.mode, settings.scope, settings.controls, settings.seed, more=more)
    result = swept(model, scores, task, options, work, "ablate", texts)
    rows = [row for row in result.summary() if row["metric"] in ("recall", "exact", "perplexity")]
    found = _summary(model, scores, settings, top, rows) | {"items": len(result.items), "needles": len(task.needles)}
    if not isinstance(settings, RealSettings):
        return found
    modes = {settings.mode: _recall(rows)}
    for mode in (mode for mode in MODES if mode != settings.mode):
        other = AblationOptions(top, mode, settings.scope, settings.mode_controls, settings.seed)
        modes[mode] = _recall(swept(model, scores, task, other, work, f"ablate-{mode}", texts, perplexity=False).summary())
    return found | {"modes": modes}


def swept(
    model: Model, scores: HeadScores, task: Task, options: AblationOptions, work: Path | None, name: str, texts: tuple[Tensor, Tensor],
    perplexity: bool = True,
) -> AblationResult:  # fmt: skip
    """An ablation sweep whose finished parts are kept in `work`."""
    directory = open_directory(work, f"{model.name}.{name}", describe_run(model, scores, task, options))
    return ablation_curve(model, scores, task=task, texts=texts, directory=directory, perplexity=perplexity, **asdict(options))


def _recall(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["metric"] == "recall"]


def _summary(
    model: Model, scores: HeadScores, settings: Settings, top: tuple[int, ...], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    heads, over = len(scores.ranking()), int((scores.values > RETRIEVAL).sum())
    halved = [k for k in top if row_of(rows, "recall", "top", k)["mean"] < HALF * row_of(rows, "recall", "none")["mean"]]
    return {
        "name": model.name,
        "heads": heads,
        "mode": settings.mode,
        "scope": settings.scope,
        "near_paper": near_share(top, heads, REMOVED),
        "near_over": near_share(top, 1, over),
        "over_0.1": over,
        "halved_at": min(halved) if halved else None,
        "rows": rows,
    }


def row_of(rows: Sequence[dict[str, Any]], metric: str, kind: str, k: int = 0) -> dict[str, Any]:
    """The one row of an ablation's summary.

    Args:
        rows: The summary.
        metric: recall, exact or perplexity.
        kind: none, top, random or bottom.
        k: Number of heads; 0 with none.
    """
    return next(row for row in rows if (row["metric"], row["kind"], row["k"]) == (metric, kind, k))


def judge(models: Sequence[Evidence]) -> Property:
    """Main checks per model: recall halves without 5 % of the heads, and without those over 0.1; random heads cost little.

    In the paper both numbers are about 50 heads. Supporting: perplexity.
    """
    checks = [check for found in models for check in _checks(found)]
    measured = [found.ablation for found in models if found.ablation.get("rows")]
    claim = "Ablating the strongest heads destroys recall; ablating as many random heads does not."
    notes = [
        "Random heads: drawn from the same layers, none of them among the ablated ones. Recall: words of the gold answer, on needles that "
        "detection never saw. p: sign flips over needles; rank among the random draws. Random heads and perplexity are judged at the first K "
        "that halves recall.",
    ]
    return Property("causal", "Causal", claim, _line(measured), checks, {"models": measured}, notes)


def _checks(found: Evidence) -> list[Check]:
    half, m = f"below {HALF:g} of the whole model's", found.ablation
    if not m.get("rows"):
        return [missing(found.name, "recall with 5 % of the heads ablated", half, found.why or str(m.get("why", "")))]
    whole, checks = row_of(m["rows"], "recall", "none")["mean"], []
    for name, what in (
        ("near_paper", "recall with 5 % of the heads ablated"),
        ("near_over", "recall with the heads over 0.1 ablated"),
    ):
        top = row_of(m["rows"], "recall", "top", m[name])["mean"]
        checks.append(Check(found.name, what, f"{whole:.2f} → {top:.2f} (K = {m[name]})", half, top < HALF * whole))
    k = m["halved_at"] or m["near_over"]
    before, after = row_of(m["rows"], "perplexity", "none")["mean"], row_of(m["rows"], "perplexity", "top", k)["mean"]
    text, rule = f"{before:.1f} → {after:.1f} (K = {k})", f"less than {share(PERPLEXITY - 1)} more"
    plain = Check(found.name, "perplexity of plain text", text, rule, after < PERPLEXITY * before, main=False)
    drawn = {row["kind"] for row in m["rows"]}
    more = [_random_check(found.name, m["rows"], k, kind) for kind in MORE_CONTROLS if kind in drawn]
    return [*checks, _random_check(found.name, m["rows"], k), *more, *_mode_checks(m), plain]


def _mode_checks(m: dict[str, Any]) -> list[Check]:
    """Recall under the modes beside the main one, where they were measured."""
    checks = []
    for mode, rows in m.get("modes", {}).items():
        whole, top = row_of(rows, "recall", "none")["mean"], row_of(rows, "recall", "top", m["near_paper"])["mean"]
        text, rule = f"{whole:.2f} → {top:.2f} (K = {m['near_paper']})", f"below {HALF:g} of the whole model's"
        if mode != m["mode"]:
            checks.append(Check(m["name"], f"recall, mode {mode}", text, rule, top < HALF * whole, main=False))
    return checks


def _random_check(name: str, rows: Sequence[dict[str, Any]], k: int, kind: str = "random") -> Check:
    """Whether random heads cost much less than the top ones; layer-matched draws decide, the other kinds support."""
    top, random = row_of(rows, "recall", "top", k), row_of(rows, "recall", kind, k)
    p = top if kind == "random" else random
    text = f"loss {random['drop']:.2f} against {top['drop']:.2f} (K = {k}, {p_text(p['p_paired'])}, rank {p_text(p['p_rank'])})"
    small = random["drop"] <= MUCH_LESS * top["drop"] and p["p_paired"] <= LEVEL
    # With fewer than 19 draws no rank can be that rare, and it is not asked for.
    ranked = len(random["draws"]) < 1 / LEVEL - 1 or p["p_rank"] <= LEVEL
    rule = f"at most {share(MUCH_LESS)} of the top heads' loss, p at most {LEVEL:g}"
    return Check(name, f"{DRAWN[kind]} cost less", text, rule, small and ranked, main=kind == "random")


def _line(measured: Sequence[dict[str, Any]]) -> str:
    if not measured:
        return "nothing could be measured"
    at = [(m["rows"], m["halved_at"] or m["near_over"]) for m in measured]
    whole = span_of([row_of(m["rows"], "recall", "none")["mean"] for m in measured])
    top, random = (span_of([row_of(rows, "recall", kind, k)["mean"] for rows, k in at]) for kind in ("top", "random"))
    ks = " or ".join(str(k) for k in sorted({k for _, k in at}))
    return f"recall {whole} → {top} with the top {ks} heads ablated; {random} with as many random heads ablated"
