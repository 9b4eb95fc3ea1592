"""Choosing positions by score: the best ones besides those that are kept anyway, in the order of the text."""

from __future__ import annotations

import torch
from torch import Tensor


def protected(positions: Tensor, sinks: int, window: int) -> Tensor:
    """[B, S] bool: the first `sinks` and the last `window` tokens of each row. positions [B, S] int, -1 for padding."""
    last = positions.amax(dim=1, keepdim=True)
    return (positions >= 0) & ((positions < sinks) | (positions > last - window))


def best_places(scores: Tensor, kept: Tensor, real: Tensor, count: int) -> Tensor:
    """Indices [B, n, count] into the S positions, ascending; -1 in front where a row has fewer real positions.

    scores [B, n, S] float; kept, real [B, S] bool: positions that are taken first, and those that are no padding.
    """
    marked = scores.masked_fill(kept[:, None], torch.inf).masked_fill(~real[:, None], -torch.inf)
    values, places = marked.topk(count, dim=-1)
    return places.masked_fill(values.isneginf(), -1).sort(dim=-1).values
