"""Greedy answers with the gold answer as a draft: one pass verifies it; only what differs is generated.

The result is the same as plain greedy decoding. Several variants (ablations, say) may continue one shared past as batch rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.tail import last_rows
from headwise.caches.shared import shared_past
from headwise.heads.errors import HeadwiseError
from headwise.models.forward import forward
from headwise.runtime.greedy import decode_one, decode_rows
from headwise.runtime.runner import Leaf, token_tensor

Variant = TypeVar("Variant")


@dataclass(frozen=True)
class Answer:
    """ids: greedy tokens, the stop token included if one came. gold_logprob: log-probability of the gold ids, in nats."""

    ids: tuple[int, ...]
    gold_logprob: float


class Draft(NamedTuple):
    """Verification of a draft of n tokens in R rows.

    predicted [R, n + 1]: greedy token at each step of the draft and after it. accepted [R]: leading draft tokens that the model says
    itself. logprob [R] float32: log-probability of the draft.
    """

    predicted: Tensor
    accepted: Tensor
    logprob: Tensor


@torch.no_grad()
def verify_draft(model: Any, cache: DynamicCache, rest: Sequence[int], gold: Sequence[int], rows: int = 1) -> Draft:
    """One pass over rest + gold, appended to `cache`. Raises `HeadwiseError` if a logit is NaN or infinite."""
    count = len(gold)
    ids = token_tensor(model, [*rest, *gold], rows)
    with last_rows(model, count + 1):
        logits = forward(model, ids, cache, logits_to_keep=count + 1).logits.float()
    if not torch.isfinite(logits).all():
        raise HeadwiseError("the model's logits are not finite (NaN or infinity); try --dtype float32 or another checkpoint")
    predicted = logits.argmax(dim=-1)
    target = token_tensor(model, gold, rows)
    accepted = (predicted[:, :count] == target).int().cumprod(dim=1).sum(dim=1)
    logprob = logits[:, :count].log_softmax(dim=-1).gather(-1, target.unsqueeze(-1)).sum(dim=(1, 2))
    return Draft(predicted, accepted, logprob)


def draft_answer(draft: Draft, row: int, stop: Collection[int], limit: int) -> tuple[int, ...] | None:
    """The row's answer if the draft settles it (along it the model itself says a stop token, or `limit` tokens), else None."""
    said = [int(token) for token in draft.predicted[row, : int(draft.accepted[row]) + 1]][:limit]
    for i, token in enumerate(said):
        if token in stop:
            return tuple(said[: i + 1])
    return tuple(said) if len(said) == limit else None


def answer_variants(
    model: Any,
    leaf: Leaf,
    gold: Sequence[int],
    variants: Sequence[Variant],
    enter: Callable[[Sequence[Variant]], AbstractContextManager[Any]],
    stop: Collection[int],
    limit: int,
) -> list[Answer]:
    """One greedy answer per variant; all continue the leaf's past (one row, left as it is) with its rest.

    enter(variants) opens the block in which batch row i behaves as variants[i].
    """
    rows, rest = len(variants), leaf.rest
    with enter(variants), shared_past(model, leaf.past, rows) as cache:
        draft = verify_draft(model, cache, rest, gold, rows)
    answers = [draft_answer(draft, row, stop, limit) for row in range(rows)]
    open_rows = [row for row, answer in enumerate(answers) if answer is None]
    if open_rows:
        with enter([variants[row] for row in open_rows]), shared_past(model, leaf.past, len(open_rows)) as cache:
            if len(open_rows) == 1:
                found = [decode_one(model, cache, leaf.ids, stop, limit)]
            else:
                found = decode_rows(model, cache, rest, stop, limit, len(open_rows))
        for row, ids in zip(open_rows, found, strict=True):
            answers[row] = ids
    return [Answer(ids or (), float(draft.logprob[row])) for row, ids in enumerate(answers)]
