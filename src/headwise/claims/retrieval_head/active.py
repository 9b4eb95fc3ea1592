"""Dynamic heads: some copy in every context, others in some, and not at every step (Wu et al. 2024, sec. 3.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention import observe
from headwise.claims.retrieval_head.scores import fitting_task, needles_of
from headwise.claims.retrieval_head.sizes import RETRIEVAL, Sizes
from headwise.heads import HeadScores, PromptError
from headwise.heads.progress import Report
from headwise.maths.copy import copy_hits
from headwise.methods.copy.options import Copy
from headwise.models.model import Model
from headwise.prompts.grid import make_group, plan_groups
from headwise.runtime.answer import stop_ids, traced_answer
from headwise.runtime.runner import leaves
from headwise.stats.metrics import unigram_recall

SHUFFLES = 1000
LIMIT = 50  # tokens of an answer


def traced_steps(model: Model, scores: HeadScores, sizes: Sizes, report: Report) -> dict[str, Any]:
    """Which retrieval heads copy at which step of the answer, one context per detection needle.

    Args:
        model: The model.
        scores: Of its heads; those over 0.1 are traced.
        sizes: `ablation_length`, number of needles and seed.
        report: Progress.

    Returns:
        length, heads (strongest first) and answers: the needle, tokens, and per step the indices of the active heads. Empty if
        nothing fits.
    """
    heads = [head for head in scores.ranking() if scores.values[head] > RETRIEVAL]
    try:
        task = fitting_task(model, "detect", (sizes.ablation_length,), (0.5,), sizes)
    except PromptError:
        return {}
    stop, answers = stop_ids(model), []
    specs = sorted(plan_groups(task, model.positions), key=lambda spec: spec.needle)
    with observe(model.hf, argmax_only=True) as seen:
        for number, spec in enumerate(specs):
            report(number, len(specs), "answers step by step")
            group = make_group(spec, task, model.positions)
            for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
                prompt = group.prompts[leaf.index]
                said = traced_answer(model.hf, seen, leaf, prompt.gold, stop, LIMIT, model.is_hybrid)
                text = model.tokenizer.decode(said.ids, skip_special_tokens=True)
                if unigram_recall(text, group.needle.answer) <= Copy().min_recall:
                    continue
                span = prompt.span("answer")
                keys, emitted = (torch.tensor(ids, device=said.argmax.device) for ids in (prompt.ids, said.ids))
                hits = copy_hits(said.argmax, keys, emitted, span)
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
    return {"length": sizes.ablation_length, "heads": [str(head) for head in heads], "answers": answers}


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


def step_facts(steps: dict[str, Any]) -> dict[str, Any]:
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
