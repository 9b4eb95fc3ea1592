"""Choosing positions by score: the best ones besides those that are kept anyway, in the order of the text."""

from __future__ import annotations

import torch
from torch import Tensor


def protected(positions: Tensor, sinks: int, window: int) -> Tensor:
    """The first and the last tokens of each row.

    Args:
        positions: [B, S] integers, -1 for padding.
        sinks: How many first ones.
        window: How many last ones.

    Returns:
        [B, S] bool.
    """
    last = positions.amax(dim=1, keepdim=True)
    return (positions >= 0) & ((positions < sinks) | (positions > last - window))


def best_places(scores: Tensor, kept: Tensor, real: Tensor, count: int) -> Tensor:
    """The best positions of each row and head.

    Args:
        scores: [B, n, S] float, higher is better.
        kept: [B, S] bool, positions that are taken first.
        real: [B, S] bool, positions that are no padding.
        count: How many.

    Returns:
        Indices [B, n, count] into the S positions, ascending; -1 in front where a row has fewer real positions.
    """
    marked = scores.masked_fill(kept[:, None], torch.inf).masked_fill(~real[:, None], -torch.inf)
    values, places = marked.topk(count, dim=-1)
    return places.masked_fill(values.isneginf(), -1).sort(dim=-1).values
