"""Many texts as rows of one batch, read up to their last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.caches.shared import full_cache
from headwise.models.forward import forward
from headwise.models.model import Model, device_of


class Prefilled(NamedTuple):
    """A left-padded batch whose beginning stands in a cache.

    Attributes:
        cache: All tokens but the last ones; fork it before it grows.
        mask: [B, T], 1 for tokens of the texts, of the whole batch.
        rest: [B, R], the last tokens of each text.
        pads: Padding in front of each text.
    """

    cache: DynamicCache
    mask: Tensor
    rest: Tensor
    pads: list[int]


@torch.no_grad()
def prefilled(model: Model, texts: Sequence[Sequence[int]], rest: int = 1) -> Prefilled:
    """Read all texts but their last tokens.

    Args:
        model: The model.
        texts: Ids, each longer than `rest`.
        rest: How many tokens of each text are left.
    """
    longest, device = max(map(len, texts)), device_of(model.hf)
    pads = [longest - len(text) for text in texts]
    ids = torch.tensor([[0] * pad + list(text) for pad, text in zip(pads, texts, strict=True)], device=device)
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
    cache = full_cache(model.hf)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    forward(model.hf, ids[:, :-rest], cache, attention_mask=mask[:, :-rest], position_ids=places[:, :-rest], logits_to_keep=1)
    return Prefilled(cache, mask, ids[:, -rest:], pads)
