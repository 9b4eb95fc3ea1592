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
    values, places = marked.topk(count, dim=-1, sorted=False)
    return places.masked_fill(values.isneginf(), -1).sort(dim=-1).values


def best_pages(scores: Tensor, page: int, length: int, budget: int, sinks: int, recent: int) -> Tensor:
    """Whole pages with the best scores between the first pages and the newest positions, `budget` positions in all.

    Args:
        scores: [B, n, P], of pages of `page` positions, the first of which begins the text.
        page: Positions per page.
        length: Positions of the text, above `budget`.
        budget: Positions to choose.
        sinks: So many first positions are taken, up to the end of their last page.
        recent: At least so many of the newest positions are taken; what is no whole page of the budget goes to them.

    Returns:
        Indices [B, n, budget] into the text, ascending.
    """
    first = -(-sinks // page)
    count = max(0, (budget - recent) // page - first)
    newest = torch.arange(length - budget + (first + count) * page, length, device=scores.device)
    between = scores[..., first : min(scores.shape[-1], int(newest[0]) // page)]
    count = min(count, between.shape[-1])
    newest = torch.arange(length - budget + (first + count) * page, length, device=scores.device)
    chosen = between.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values + first
    inside = torch.arange(page, device=scores.device)
    places = (chosen[..., None] * page + inside).flatten(-2)
    ends = [torch.arange(first * page, device=scores.device), newest]
    return torch.cat([ends[0].expand(*scores.shape[:2], -1), places, ends[1].expand(*scores.shape[:2], -1)], dim=-1)
