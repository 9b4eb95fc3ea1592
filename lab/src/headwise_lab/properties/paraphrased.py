"""Beyond literal copying: needles whose questions share no word with them (in the manner of NoLiMa, Modarressi et al. 2025, arXiv 2502.05167).

The same needles are asked in their own words, too, so that nothing but the wording of the question differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headwise.evaluation.ablation import AblationOptions
from headwise.evaluation.perplexity import plain_windows
from headwise.heads import HeadScores, NoSuccessfulRunError, PromptError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores, describe_run
from headwise.models.model import Model
from headwise.prompts.needles import bundled_needles
from headwise.stats.agreement import pearson
from headwise.stats.paired import bootstrap_mean, sign_flip_test
from headwise_lab.properties.causal import row_of, swept
from headwise_lab.properties.detection import Evidence, needle_task, open_directory
from headwise_lab.properties.settings import RealSettings
from headwise_lab.properties.verdict import Check, Property, missing, p_text

SETS = ("literal", "paraphrased")
ABLE, HALF, LEVEL = 0.8, 0.5, 0.05  # recall that a task needs; of the literal or the whole model's recall; of tests


def measure(model: Model, scores: HeadScores, settings: RealSettings, work: Path | None) -> dict[str, Any]:
    """Recall of both kinds of question, the heads that copy their answers, and what ablating the heads of detection costs each."""
    settings = replace(settings, needles=len(bundled_needles(SETS[0])))
    short, long = settings.paraphrased_lengths
    found: dict[str, Any] = {
        "name": model.name,
        "lengths": [short, long],
        "needles": settings.needles,
        "k": settings.paraphrased_k,
    }
    try:
        for kind in SETS:
            found[kind] = _measure_set(model, scores, settings, kind, work)
    except PromptError as error:
        return {"why": str(error)}
    differences = np.asarray(found["paraphrased"]["by_needle"]) - np.asarray(found["literal"]["by_needle"])
    found["difference"] = bootstrap_mean(differences, seed=settings.seed)._asdict() | {
        "p": sign_flip_test(differences, seed=settings.seed)
    }
    return found


def _measure_set(model: Model, scores: HeadScores, settings: RealSettings, kind: str, work: Path | None) -> dict[str, Any]:
    short, long = settings.paraphrased_lengths
    task = needle_task(model, kind, (long,), settings.paraphrased_places, settings)
    directory = open_directory(work, f"{model.name}.{kind}", describe_run(model, task, Copy(min_recall=0.0)))
    try:
        own = copy_scores(model, task, Copy(min_recall=0.0), directory)
    except NoSuccessfulRunError:
        return {
            "recall": {"mean": 0.0, "low": 0.0, "high": 0.0},
            "by_needle": [0.0] * len(task.needles),
            "pearson": None,
            "rows": [],
        }
    cells = own.provenance["cells"]
    needles = sorted({cell["needle"] for cell in cells})
    by_needle = [float(np.mean([cell["recall"] for cell in cells if cell["needle"] == needle])) for needle in needles]
    brief = needle_task(model, kind, (short,), settings.paraphrased_places, settings)
    options = AblationOptions(
        (settings.paraphrased_k,), settings.mode, settings.scope, settings.paraphrased_controls, settings.seed
    )
    result = swept(model, scores, brief, options, work, f"{kind}-ablate", plain_windows(brief, model.positions), perplexity=False)
    return {
        "recall": bootstrap_mean(np.asarray(by_needle), seed=settings.seed)._asdict(),
        "exact": float(np.mean([cell["exact"] for cell in cells])),
        "by_needle": by_needle,
        "pearson": pearson(scores.values, own.values),
        "top": [str(head) for head in own.ranking()[: settings.paraphrased_k]],
        "rows": [row for row in result.summary() if row["metric"] == "recall"],
        "samples": [{"needle": cell["needle"], "answer": cell["answer"]} for cell in cells[:: max(1, len(cells) // 6)]],
    }


def judge(models: Sequence[Evidence]) -> Property:
    """Main check: without a common word recall is below half. Supporting: the same heads carry it, where the model finds it at all."""
    measured = [found.paraphrased for found in models if found.paraphrased.get("difference")]
    checks = [check for found in models if found.model.real for check in _checks(found)]
    line = "nothing could be measured"
    if measured:
        long = measured[0]["lengths"][1]
        parts = [
            f"{m['literal']['recall']['mean']:.2f} in the needle's words, {m['paraphrased']['recall']['mean']:.2f} without"
            for m in measured
        ]
        line = f"recall at {long} tokens {'; '.join(parts)}"
    notes = [
        "The same needles are asked in their own words and without any of their content words. The second kind must be inferred: that a "
        "person who was in Tokyo has seen Japan, say."
    ]
    claim = "Needles that share no word with their question are found much less often."
    return Property("paraphrased", "Paraphrased needles", claim, line, checks, {"models": measured}, notes)


def _checks(found: Evidence) -> list[Check]:
    name, m = found.name, found.paraphrased
    rule, causal = f"below {HALF:g} of the literal recall, p at most {LEVEL:g}", f"below {HALF:g} of the whole model's"
    if not m.get("difference"):
        return [missing(name, "recall without common words", rule, found.why or str(m.get("why", "")))]
    literal, other = (m[kind]["recall"] for kind in SETS)
    text = f"{literal['mean']:.2f} → {other['mean']:.2f} ({m['lengths'][1]} tokens, {p_text(m['difference']['p'])})"
    first = Check(
        name, "recall without common words", text, rule, other["mean"] < HALF * literal["mean"] and m["difference"]["p"] <= LEVEL
    )
    if literal["mean"] < ABLE:
        first = missing(name, "recall without common words", rule, f"the literal questions reach only {literal['mean']:.2f}")
    checks = [first]
    for kind in SETS:
        rows, what = m[kind]["rows"], f"recall, {kind}, heads ablated"
        whole = row_of(rows, "recall", "none")["mean"] if rows else 0.0
        if whole < ABLE:
            told = f"the whole model finds only {whole:.2f} at {m['lengths'][0]} tokens"
            checks.append(missing(name, what, causal, told, main=False))
            continue
        top, random = (row_of(rows, "recall", drawn, m["k"])["mean"] for drawn in ("top", "random"))
        text = f"{whole:.2f} → {top:.2f}, random {random:.2f} (K = {m['k']}, {m['lengths'][0]} tokens)"
        checks.append(Check(name, what, text, causal, top < HALF * whole, main=False))
    return checks
