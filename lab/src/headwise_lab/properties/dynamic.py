"""Property 4, dynamic: some heads copy in every context, others in some (Wu et al. 2024, sec. 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention import observe
from headwise.heads import HeadScores, PromptError
from headwise.maths.copy import copy_hits
from headwise.methods.copy.options import Copy
from headwise.models.model import Model
from headwise.prompts.grid import make_group, plan_groups
from headwise.runtime.answer import stop_ids, traced_answer
from headwise.runtime.runner import leaves
from headwise.stats.metrics import unigram_recall
from headwise_lab.properties.detection import Evidence, needle_task, needles_of
from headwise_lab.properties.paper import DISTRIBUTIONS, RETRIEVAL
from headwise_lab.properties.settings import Settings
from headwise_lab.properties.verdict import Check, Property, missing, p_text, span_of

OFTEN, WEAK = 0.9, 0.5  # "active in most contexts, yet copies little": frequency over, score below
SHUFFLES = 1000
LEVEL = 0.05


def trace_steps(model: Model, scores: HeadScores, settings: Settings) -> dict[str, Any]:
    """Which retrieval heads copy at which step of the answer, one context per detection needle.

    Args:
        model: The model.
        scores: Of its heads; those over 0.1 are traced.
        settings: `step_length`, number of needles and seed.

    Returns:
        length, heads (strongest first) and answers: the needle, tokens, and per step the indices of the active heads. Empty if
        nothing fits.
    """
    heads = [head for head in scores.ranking() if scores.values[head] > RETRIEVAL]
    try:
        task = needle_task(model, "detect", (settings.step_length,), (0.5,), settings)
    except PromptError:
        return {}
    stop, answers = stop_ids(model), []
    with observe(model.hf, argmax_only=True) as seen:
        for spec in sorted(plan_groups(task, model.positions), key=lambda spec: spec.needle):
            group = make_group(spec, task, model.positions)
            for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
                prompt = group.prompts[leaf.index]
                said = traced_answer(model.hf, seen, leaf, prompt.gold, stop, 50, model.is_hybrid)
                text = model.tokenizer.decode(said.ids, skip_special_tokens=True)
                if unigram_recall(text, group.needle.answer) <= Copy().min_recall:
                    continue
                span = prompt.span("answer")
                hits = copy_hits(said.argmax, torch.tensor(prompt.ids), torch.tensor(said.ids), span)
                chosen = torch.stack([hits[head.layer, head.head] for head in heads]) if heads else hits[:0, 0]
                # Steps that say a token of the answer; a full stop or a line break cannot be copied from it.
                steps = [t for t, token in enumerate(said.ids) if token in prompt.ids[span.start : span.stop]]
                answers.append(
                    {
                        "needle": spec.needle,
                        "tokens": [model.tokenizer.decode([said.ids[t]]) for t in steps],
                        "active": [torch.nonzero(chosen[:, t]).flatten().tolist() for t in steps],
                    }
                )
    return {"length": settings.step_length, "heads": [str(head) for head in heads], "answers": answers}


def context_dependence(scores: HeadScores, seed: int) -> dict[str, float]:
    """Whether the set of active heads depends on the needle.

    Args:
        scores: With per-run values; a head with a score above 0 is active in that run.
        seed: Of the shuffles, 0 or more.

    Returns:
        within, between: mean Jaccard similarity in [0, 1] of the active sets of two runs with the same and with different
        needles. p: share of shuffles of the needles over the runs whose difference is at least as large. Empty if there are no
        two needles, or no needle twice.
    """
    runs = np.nan_to_num(np.asarray(scores.runs)).reshape(len(scores.run_info), -1) > 0
    which = needles_of(scores)
    similar = jaccard(runs)
    upper = np.triu_indices(len(runs), 1)
    same = which[upper[0]] == which[upper[1]]
    if same.all() or not same.any():
        return {}
    alike = similar[upper]

    def difference(mask: NDArray[np.bool_]) -> float:
        return float(alike[mask].mean() - alike[~mask].mean())

    observed, rng, larger = difference(same), np.random.default_rng([seed, 41]), 0
    for _ in range(SHUFFLES):
        shuffled = rng.permutation(which)
        larger += difference(shuffled[upper[0]] == shuffled[upper[1]]) >= observed
    within, between = float(alike[same].mean()), float(alike[~same].mean())
    return {"within": within, "between": between, "p": (1 + larger) / (1 + SHUFFLES)}


def jaccard(sets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[set, set] similarity of the rows of [set, member]; two empty sets are equal."""
    common = sets.astype(np.float64) @ sets.T.astype(np.float64)
    sizes = np.diag(common)
    union = sizes[:, None] + sizes[None, :] - common
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def judge(models: Sequence[Evidence], seed: int) -> Property:
    """Main checks per model: always-on heads exist but not all are; a frequent head copies little; active sets depend on the needle."""
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    for found in models:
        if found.scores is None:
            checks.append(missing(found.name, "always-on heads", "some of the retrieval heads, not all", found.why))
            continue
        row = _row(found, found.scores, seed)
        rows.append(row)
        checks += _checks(row)
    line = "nothing could be measured"
    if rows:
        always = sorted({len(row["always_on"]) for row in rows})
        steps = [row["steps"]["mean_active"] for row in rows if row["steps"]]
        sizes = "/".join(str(size) for size in sorted({found.shape[0] * found.shape[1] for found in models}))
        line = f"{span_of([always[0], always[-1]], 0)} always-on heads of {sizes}"
        line += f"; {span_of([100 * s for s in steps], 0)} % of the retrieval heads copy at a step on average" if steps else ""
    data = {"models": rows, "paper": [{"name": m.name, "heads": m.heads, "always_on": m.always_on} for m in DISTRIBUTIONS]}
    notes = ["Frequency: share of solved runs in which a head copies at least one token. Always on: frequency 1."]
    claim = "A few heads copy in every context; the others copy in some contexts and at some steps only."
    return Property("dynamic", "Dynamic", claim, line, checks, data, notes)


def _checks(row: dict[str, Any]) -> list[Check]:
    name, always, heads = row["name"], len(row["always_on"]), row["retrieval_heads"]
    weak = row["frequent_but_weak"]
    rule = "some of the retrieval heads, not all"
    checks = [
        Check(name, "always-on heads", f"{always} of {heads} over 0.1", rule, 0 < always < heads),
        Check(name, "frequency over 0.9 with score below 0.5", ", ".join(weak) or "none", "at least 1 head", bool(weak)),
    ]
    rule = f"more alike for the same needle, p at most {LEVEL:g}"
    if not row["dependence"]:
        return [*checks, missing(name, "active sets by needle", rule, "solved runs of two needles are needed")]
    within, between, p = (row["dependence"][key] for key in ("within", "between", "p"))
    text = f"Jaccard {within:.2f} for one needle, {between:.2f} across ({p_text(p)})"
    return [*checks, Check(name, "active sets by needle", text, rule, within > between and p <= LEVEL)]


def _row(found: Evidence, scores: HeadScores, seed: int) -> dict[str, Any]:
    values, frequency = scores.values, scores.frequency
    order = [head for head in scores.ranking() if values[head] > 0 or frequency[head] > 0]
    return {
        "name": found.name,
        "all_heads": values.size,
        "heads": [str(head) for head in order],
        "score": [float(values[head]) for head in order],
        "frequency": [float(frequency[head]) for head in order],
        "retrieval_heads": int((values > RETRIEVAL).sum()),
        "always_on": [str(head) for head in order if frequency[head] == 1],
        "frequent_but_weak": [str(head) for head in order if frequency[head] > OFTEN and values[head] < WEAK],
        "dependence": context_dependence(scores, seed),
        "steps": _step_facts(found.steps),
    }


def _step_facts(steps: dict[str, Any]) -> dict[str, Any]:
    """The traced answers with mean_active (share of the retrieval heads that copy at one step) and between_steps (Jaccard of neighbours)."""
    heads, answers = len(steps.get("heads", ())), steps.get("answers", [])
    shares = [len(active) / heads for answer in answers for active in answer["active"]] if heads else []
    if not shares:
        return {}
    pairs = [
        (set(a), set(b)) for answer in answers for a, b in zip(answer["active"], answer["active"][1:], strict=False) if a or b
    ]
    alike = [len(a & b) / len(a | b) for a, b in pairs]
    distinct = len({tuple(active) for answer in answers for active in answer["active"]})
    return steps | {
        "mean_active": float(np.mean(shares)),
        "between_steps": float(np.mean(alike)) if alike else None,
        "distinct_sets": distinct,
        "steps": len(shares),
    }
