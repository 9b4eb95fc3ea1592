"""Greedy decoding: many rows step by step, or one row with drafts taken from its own text.

A model that answers from a long prompt copies from it, and a model that has lost its way repeats itself. So what followed the last
earlier occurrence of the newest tokens is a good guess of what comes next (prompt lookup decoding, Saxena 2023): one pass checks
several tokens, and the answer is that of plain greedy decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from transformers import DynamicCache

from headwise.caches.shared import cut_back
from headwise.models.forward import forward
from headwise.models.model import as_model
from headwise.runtime.runner import token_tensor

DRAFT = 8  # tokens guessed at once
LONGEST_MATCH = 3


@torch.no_grad()
def decode_rows(
    model: Any, cache: DynamicCache, rest: Sequence[int], stop: Collection[int], limit: int, rows: int
) -> list[tuple[int, ...]]:
    """Greedy answers of all rows after `rest`; each ends with its first stop token or after `limit` tokens. Grows `cache`.

    It also ends where the model's positions end.
    """
    answers: list[list[int]] = [[] for _ in range(rows)]
    limit = _within_positions(model, cache.get_seq_length() + len(rest), limit)
    ids = token_tensor(model, rest, rows)
    while True:
        logits = forward(model, ids, cache, logits_to_keep=1).logits
        ids = logits[:, -1:].argmax(dim=-1)
        for answer, new in zip(answers, ids[:, 0].tolist(), strict=True):
            if not answer or (answer[-1] not in stop and len(answer) < limit):
                answer.append(new)
        if all(answer[-1] in stop or len(answer) >= limit for answer in answers):
            return [tuple(answer) for answer in answers]


@torch.no_grad()
def decode_one(
    model: Any, cache: DynamicCache, ids: Sequence[int], stop: Collection[int], limit: int, said: Sequence[int] = ()
) -> tuple[int, ...]:
    """Greedy answer to the prompt `ids`, ended as in `decode_rows`. Grows `cache`, which holds a part of ids + said.

    said: first tokens of the answer that are known already (no stop token among them, fewer than `limit`).
    """
    answer, limit = list(said), _within_positions(model, len(ids), limit)
    most = 0 if as_model(model).is_hybrid else DRAFT  # a recurrent state cannot be taken back
    while True:
        text = [*ids, *answer]
        draft = guess(text, min(most, limit - len(answer) - 1))
        new = token_tensor(model, [*text[cache.get_seq_length() :], *draft])
        logits = forward(model, new, cache, logits_to_keep=len(draft) + 1).logits
        accepted = 0
        for accepted, token in enumerate(logits[0].argmax(dim=-1).tolist()):  # used after the loop
            answer.append(token)
            if token in stop or len(answer) >= limit:
                return tuple(answer)
            if draft[accepted : accepted + 1] != [token]:
                break
        cut_back(cache, len(draft) - accepted)


def guess(text: Sequence[int], width: int) -> list[int]:
    """`width` tokens that followed the last earlier occurrence of the end of `text`, repeated if the text ends first; [] if none.

    The longest match of up to `LONGEST_MATCH` tokens decides.
    """
    array = np.asarray(text)
    for count in range(min(LONGEST_MATCH, len(array) - 1) if width > 0 else 0, 0, -1):
        found = np.flatnonzero((sliding_window_view(array[:-1], count) == array[-count:]).all(axis=1))
        if len(found):
            follows = array[found[-1] + count :]
            return [int(token) for token in np.resize(follows, width)]
    return []


def _within_positions(model: Any, start: int, limit: int) -> int:
    positions = as_model(model).positions
    return limit if positions is None else min(limit, positions - start + 1)
