"""Answers to prompts under several variants of one model: every prompt is read as few times as the variants allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.evaluation.ablation import TOKENS, variant_starts
from headwise.heads.progress import Report, silent
from headwise.models.model import Model
from headwise.prompts.encoder import read_answer
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import answer_variants, decode_one, stop_ids

Enter = Callable[[Sequence[Any], int], AbstractContextManager[Any]]


class Steered(NamedTuple):
    """The answer to a prompt under one variant.

    Attributes:
        text: Without special tokens, and without thoughts in front of it.
        gold_logprob: Log-probability of the prompt's gold ids together, in nats; 0 for none.
    """

    text: str
    gold_logprob: float


def steered_answers(
    model: Model,
    prompts: Sequence[Prompt],
    variants: Sequence[Any],
    enter: Enter,
    scope: str = "answer",
    max_new_tokens: int = 20,
    rows: int = 32,
    report: Report = silent,
) -> list[list[Steered]]:
    """Greedy answers of one line.

    Args:
        model: With its tokenizer.
        prompts: Their gold ids are verified as a draft; they may have none.
        variants: What the model is changed to; batch row i of an open block behaves as variant i.
        enter: enter(variants, position of the last prompt token) opens such a block.
        scope: Variants differ from the last prompt token on (`answer`: each prompt is read once for all of them), or from the first on (`all`).
        max_new_tokens: Longest answer in tokens.
        rows: Variants in one batch, at most.
        report: Called with (done, total, remark); counts prompts.

    Returns:
        [prompt][variant].

    Raises:
        HeadwiseError: A logit is NaN or infinite, and what the block raises.
    """
    found: list[list[Steered]] = [[] for _ in prompts]
    done, stop = 0, stop_ids(model)
    with attached(model.hf):
        for leaf in variant_starts(model.hf, [prompt.ids for prompt in prompts], scope):
            prompt = prompts[leaf.index]
            last = len(prompt.ids) - 1
            step = max(1, min(rows, TOKENS // len(leaf.rest)))
            for start in range(0, len(variants), step):
                batch = variants[start : start + step]
                entered = partial(_entered, enter, last)
                answers = answer_variants(model.hf, leaf, prompt.gold, batch, entered, stop, max_new_tokens)
                texts = [read_answer(model.tokenizer, answer.ids, stop) for answer in answers]
                found[leaf.index] += [Steered(text, one.gold_logprob) for text, one in zip(texts, answers, strict=True)]
            done += 1
            report(done, len(prompts), f"{len(variants)} variants")
    return found


@torch.no_grad()
def continued(model: Model, ids: Sequence[int], max_new_tokens: int) -> str:
    """The greedy continuation of a prompt, over as many lines as it has, under whatever block is open.

    Args:
        model: With its tokenizer. Blocks that ask where the answer begins must have been told: passes hold several tokens of it.
        ids: The prompt.
        max_new_tokens: At most so many tokens; an end-of-text token ends it earlier.

    Returns:
        The new text, without special tokens.
    """
    with attached(model.hf):
        said = decode_one(model.hf, full_cache(model.hf), ids, model.stop_ids, max_new_tokens)
    return str(model.tokenizer.decode(said, skip_special_tokens=True))


def _entered(enter: Enter, last: int, chosen: Sequence[Any]) -> AbstractContextManager[Any]:
    return enter(chosen, last)
