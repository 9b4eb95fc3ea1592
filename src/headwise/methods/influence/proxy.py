"""Proxy score: find retrieval heads by looking up keys in a JSON object (Hua et al. 2025, arXiv:2505.07293, eq. 4).

The copy criterion of Wu et al. 2024 on prompts of `prompts/proxy.py`: while a token of the gold value is predicted, a head copies if its strongest
key lies in that pair's value and holds that token. One pass over prompt and gold answer scores a sample; the row that predicts answer token t
is the position before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.attention import observe
from headwise.caches.shared import full_cache
from headwise.heads import HeadScores, HeadSet, HeadwiseError, PromptError
from headwise.heads.progress import Report, silent
from headwise.maths.copy import copy_score
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import ProxyPrompts
from headwise.models.model import Model, describe_model
from headwise.runtime.answer import verify_draft
from headwise.runtime.rundir import RunDirectory

SCORE_VERSION = 1
SHARE = 0.05  # of the heads that the paper leaves out
GROUP = 16  # samples that are kept on disk together


def proxy_scores(
    model: Model,
    prompts: ProxyPrompts,
    scoring: Proxy | None = None,
    directory: RunDirectory | None = None,
    report: Report = silent,
) -> HeadScores:
    """Proxy scores of all query heads (eq. 4), averaged over samples.

    Args:
        model: With its tokenizer.
        prompts: The samples.
        scoring: How heads are scored; None: as the prompts were asked for.
        directory: Finished groups of samples are kept there and not run again.
        report: `report(done, total, remark)`; progress in samples.

    Returns:
        Scores in [0, 1] with one row of per-run values per kept sample. provenance: `accuracy` (samples whose every answer token
        is the model's first choice), `token_accuracy`, and all `samples`.

    Raises:
        HeadwiseError: The accuracy is too low, or no head copies.
        PromptError: Prompts that cannot be made or do not fit the model.
    """
    scoring, positions, length = scoring or prompts.options, model.positions, prompts.options.sizes().length
    if positions is not None and length > positions:
        raise PromptError(
            f"proxy prompts of {length} tokens do not fit the model's {positions} positions; choose a length of at most that"
        )
    tables: list[NDArray[np.float32]] = []
    cells: list[dict[str, Any]] = []
    for start in range(0, len(prompts), GROUP):
        key = f"samples{start:05d}"
        found = directory.load(key) if directory else None
        if found is None:
            found = _run(model, prompts, range(start, min(start + GROUP, len(prompts))), scoring)
            if directory:
                directory.save(key, *found)
        tables.append(found[0]["scores"])
        cells += found[1]
        report(len(cells), len(prompts), f"{sum(cell['right'] for cell in cells)} of {len(cells)} answered")
    return _collect(model, prompts, scoring, np.concatenate(tables), cells)


def describe_run(model: Model, prompts: ProxyPrompts, scoring: Proxy) -> dict[str, Any]:
    """All that decides the result, as plain data."""
    asked = {name: getattr(prompts.options, name) for name in ("samples", "shots", "pairs", "seed")}
    stated = {name: getattr(scoring, name) for name in ("rule", "wrong", "min_accuracy")}
    made = {"prompts": prompts.options.sizes()._asdict() | asked, "sentences_digest": prompts.digest, "options": stated}
    return {"score": "proxy", "score_version": SCORE_VERSION} | made | describe_model(model)


def top_share(scores: HeadScores, share: float = SHARE) -> HeadSet:
    """The strongest `share` of the scored heads (the paper: 5 %), rounded up; ties by layer and head.

    Raises:
        HeadwiseError: A share outside (0, 1], or a chosen head with a score of 0, which its place alone would have chosen.
    """
    if not 0 < share <= 1:
        raise HeadwiseError(f"the share of heads must lie in (0, 1]; got {share:g}")
    count = math.ceil(round(share * int((~np.isnan(scores.values)).sum()), 9))  # 0.05 * 140 is a little more than 7
    chosen = scores.top(count)
    if scores.values[chosen.heads[-1]] <= 0:
        positive = int((scores.values > 0).sum())
        raise HeadwiseError(f"the top {share:.0%} are {count} heads, but only {positive} have a {scores.score} score above 0")
    return HeadSet(chosen.heads, chosen.shape, f"top {share:.0%} ({count}) by {scores.score} score")


def _run(model: Model, prompts: ProxyPrompts, samples: range, scoring: Proxy) -> Any:
    """({"scores": [sample, L, H]}, info per sample)."""
    scores = np.full((len(samples), *model.heads.shape), np.nan, dtype=np.float32)
    layers = sorted(model.modules)
    info = []
    with observe(model.hf, argmax_only=True) as seen:
        for row, sample in enumerate(samples):
            prompt = prompts[sample]
            steps, span = len(prompt.gold), prompt.span("value")
            seen.rows = steps + 1  # the last one stands on the last answer token and predicts what nobody asks for
            draft = verify_draft(model.hf, full_cache(model.hf), prompt.ids, prompt.gold)
            argmax = seen.argmax[layers, 0, :, :steps]
            keys, gold = (torch.tensor(ids, device=argmax.device) for ids in (prompt.ids, prompt.gold))
            scores[row, layers] = copy_score(argmax, keys, gold, span, scoring.rule).cpu().numpy()
            said = draft.predicted[0, :steps].to(gold.device) == gold
            pairs, depth = sum(name.endswith("/key") for name in prompt.spans), round(span.start / len(prompt.ids), 6)
            place = {"sample": sample, "pairs": pairs, "tokens": len(prompt.ids) + steps, "depth": depth}
            info.append(place | {"right": bool(said.all()), "answer_tokens": steps, "tokens_right": int(said.sum())})
    return {"scores": scores}, info


def _collect(
    model: Model, prompts: ProxyPrompts, scoring: Proxy, runs: NDArray[np.float32], samples: list[dict[str, Any]]
) -> HeadScores:
    right = np.array([sample["right"] for sample in samples])
    if right.mean() < scoring.min_accuracy or (scoring.wrong == "skip" and not right.any()):
        raise HeadwiseError(
            f"the model answered {right.sum()} of {len(samples)} proxy questions, fewer than {scoring.min_accuracy:.0%}, so the heads it "
            "uses cannot be told; try a smaller length, fewer pairs, smaller key_length or value_tokens, or lower min_accuracy"
        )
    kept = right if scoring.wrong == "skip" else np.ones_like(right)
    values = runs[kept].astype(np.float64).mean(axis=0)
    if not np.nanmax(values) > 0:
        raise HeadwiseError(f"no head copied a token of the value in {kept.sum()} proxy questions: all scores are 0")
    tokens = [sum(sample[name] for sample in samples) for name in ("tokens_right", "answer_tokens")]
    measured = {"accuracy": float(right.mean()), "token_accuracy": tokens[0] / tokens[1], "samples": samples}
    names = ("sample", "pairs", "tokens", "depth")
    info = tuple({name: sample[name] for name in names} for sample, keep in zip(samples, kept, strict=True) if keep)
    return HeadScores(values, "proxy", SCORE_VERSION, runs[kept], info, describe_run(model, prompts, scoring) | measured)
