"""Which heads' vectors carry a task: each head's vector is put in alone, and the right answer's log-probability is looked at.

The idea is that of the average indirect effect (Todd et al. 2024, arXiv:2310.15213, section 2.2), with vectors of one prompt and the whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwise.attention.plan import attached
from headwise.attention.vectors import HeadVectors, check_insertion, insert
from headwise.caches.shared import shared_past
from headwise.evaluation.ablation import variant_starts
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadScores
from headwise.models.model import Model, describe_model
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import verify_draft


def vector_effects(
    model: Model,
    every: HeadVectors,
    prompts: Sequence[Prompt],
    mode: str = "replace",
    scale: float = 1.0,
    rows: int = 64,
    report: Report = silent,
) -> HeadScores:
    """How much each head's vector alone raises the log-probability of the wanted answers.

    Args:
        model: The model.
        every: Vectors of the heads that are scored.
        prompts: Without the task, with the wanted answer as gold. Use others than those that a result is reported on.
        mode: See `headwise.insert`.
        scale: Factor of the vectors.
        rows: Heads in one batch.
        report: Called with (done, total, remark); counts prompts.

    Returns:
        Scores in nats per prompt, runs by prompt; NaN for heads without a vector.

    Raises:
        HeadwiseError: No prompt, or one without a gold answer.
    """
    check_insertion(mode, [scale])
    if not prompts or not all(prompt.gold for prompt in prompts):
        raise HeadwiseError(
            "effects of vectors are measured on prompts with a wanted answer; one has none, or there is no prompt"
        )
    singles = [every.of([head]) for head in every.heads]
    runs = np.full((len(prompts), *model.heads.shape), np.nan)
    with attached(model.hf):
        for done, leaf in enumerate(variant_starts(model.hf, [prompt.ids for prompt in prompts], "answer"), 1):
            gold, last = prompts[leaf.index].gold, len(leaf.ids) - 1
            with shared_past(model.hf, leaf.past, 1) as cache:
                plain = float(verify_draft(model.hf, cache, leaf.rest, gold).logprob[0])
            for start in range(0, len(singles), rows):
                batch = singles[start : start + rows]
                with insert(model, batch, mode, scale, last), shared_past(model.hf, leaf.past, len(batch)) as cache:
                    found = verify_draft(model.hf, cache, leaf.rest, gold, len(batch)).logprob
                for one, value in zip(batch, found.tolist(), strict=True):
                    runs[leaf.index][one.heads[0]] = value - plain
            report(done, len(prompts), f"{len(singles)} heads")
    info = tuple({"prompt": number} for number in range(len(prompts)))
    about = describe_model(model) | {"mode": mode, "scale": scale}
    return HeadScores(runs.mean(axis=0), "vector effect", 1, runs.astype(np.float32), info, about)
