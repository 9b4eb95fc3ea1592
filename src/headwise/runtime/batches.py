"""Answers to many prompts at once, greedy or drawn, for any causal language model: padded on the left, sorted by length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.heads.errors import HeadwiseError
from headwise.models.forward import forward
from headwise.models.model import device_of
from headwise.prompts.encoder import ends

BATCH_TOKENS = 8192  # padded tokens of a batch
ALONE = 1024  # tokens; a longer prompt runs alone, because without padding attention needs no mask and is twice as fast
Ids = Sequence[int]
Draws = Sequence[Callable[[Tensor], int]]


@torch.no_grad()
def greedy_answers(model: Any, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int]) -> list[tuple[int, ...]]:
    """The greedy answers to many prompts: those of one prompt after the other, up to rounding.

    Runs under whatever attach block is open.

    Args:
        model: A transformers model.
        prompts: Ids, at least one each.
        limits: Longest answer to each prompt in tokens, at least 1.
        stop: Ids that end an answer.

    Returns:
        Ids per prompt, the stop token included if one came.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    return _answers(model, prompts, limits, stop, None)


@torch.no_grad()
def drawn_answers(
    model: Any, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int], draws: Sequence[Callable[[Tensor], int]]
) -> list[tuple[int, ...]]:
    """Answers whose tokens are drawn, for many prompts.

    Args:
        model: See `greedy_answers`.
        prompts: Likewise.
        limits: Likewise.
        stop: Likewise.
        draws: One for each prompt: logits [V] float32 -> the next token. Each with a random generator of its own, so that what is drawn for a prompt
            does not depend on the others.

    Returns:
        See `greedy_answers`.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    return _answers(model, prompts, limits, stop, draws)


def _answers(
    model: Any, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int], draws: Draws | None
) -> list[tuple[int, ...]]:
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    for batch in _batches(prompts):
        own = None if draws is None else [draws[i] for i in batch]
        found = _answer_batch(model, [prompts[i] for i in batch], [limits[i] for i in batch], stop, own)
        for i, ids in zip(batch, found, strict=True):
            answers[i] = ids
    return answers


@torch.no_grad()
def next_token_logits(model: Any, prompts: Sequence[Ids], tokens: Ids) -> Tensor:
    """Logits of some tokens right after each prompt.

    Args:
        model: A transformers model.
        prompts: Ids, at least one each.
        tokens: The ids to look at.

    Returns:
        [prompt, token] float32, on the CPU.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    out = torch.empty(len(prompts), len(tokens))
    for batch in _batches(prompts):
        ids, mask = _padded(model, [prompts[i] for i in batch])
        out[batch] = padded_logits(model, ids, mask, DynamicCache(config=model.config))[:, list(tokens)].cpu()
    return out


def _batches(prompts: Sequence[Ids]) -> list[list[int]]:
    """Indices of the prompts, longest first, so that a batch has prompts of about one length."""
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if not room or len(prompts[i]) > ALONE:
            room = max(1, BATCH_TOKENS // len(prompts[i])) if len(prompts[i]) <= ALONE else 1
            batches.append([])
        batches[-1].append(i)
        room -= 1
    return batches


def _answer_batch(
    model: Any, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int], draws: Draws | None
) -> list[tuple[int, ...]]:
    answers: list[list[int]] = [[] for _ in prompts]
    is_open = [True] * len(prompts)
    cache = DynamicCache(config=model.config)
    ids, mask = _padded(model, prompts)
    while True:
        ids = _next(padded_logits(model, ids, mask, cache), is_open, draws)
        for row, token in enumerate(ids[:, 0].tolist()):
            if is_open[row]:
                answers[row].append(token)
                is_open[row] = not ends(stop, answers[row]) and len(answers[row]) < limits[row]
        if not any(is_open):
            return [tuple(answer) for answer in answers]
        mask = torch.cat([mask, mask.new_ones(len(answers), 1)], dim=1)


def _next(logits: Tensor, is_open: Sequence[bool], draws: Draws | None) -> Tensor:
    """The next token [B, 1] of each row; a row that has ended draws no more."""
    best = logits.argmax(dim=-1, keepdim=True)
    if draws is not None:
        for row in (row for row, goes_on in enumerate(is_open) if goes_on):
            best[row, 0] = draws[row](logits[row])
    return best


def _padded(model: Any, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids and mask [prompt, T] int64, both 0 where there is padding."""
    width = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    place = device_of(model)
    return ids.to(place), mask.to(place)


def padded_logits(model: Any, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """What the model says behind the rows of a batch, which may have padding on the left.

    Args:
        model: A transformers model.
        ids: [B, t], appended to the cache.
        mask: [B, T] int64 for the cache and the new ids, 0 for padding.
        cache: It grows.

    Returns:
        Logits [B, V] float32 after the last id.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    visible = None if bool(mask.all()) else mask
    logits: Tensor = forward(model, ids, cache, attention_mask=visible, position_ids=positions, logits_to_keep=1).logits[:, -1]
    if not torch.isfinite(logits).all():
        raise HeadwiseError("the model's logits are not finite (NaN or infinity); use another checkpoint")
    return logits.float()
