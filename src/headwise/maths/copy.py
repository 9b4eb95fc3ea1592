"""Copy score: how much of a needle a head copies into the answer (Wu et al. 2024, arXiv:2404.15574, sec. 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_hits(argmax: Tensor, key_ids: Tensor, emitted: Tensor, needle: tuple[int, int], match: str = "token") -> Tensor:
    """Steps at which a head copies: its strongest key lies in the needle and holds the token that is emitted next.

    Args:
        argmax: [..., T] int64, strongest key position of the row that predicts step t (-1 = no attention).
        key_ids: [S], prompt ids.
        emitted: [T], generated ids.
        needle: Its positions [start, stop).
        match: `token` accepts any needle position that holds the token; `position` asks for position start + t, so that a repeated token
            cannot be matched at the wrong place.

    Returns:
        Bool [..., T].
    """
    start, stop = needle
    inside = (argmax >= start) & (argmax < stop)
    hits = inside & (key_ids[argmax.clamp(min=0, max=len(key_ids) - 1)] == emitted)
    if match == "position":
        hits = hits & (argmax == start + torch.arange(emitted.shape[-1], device=argmax.device))
    return hits


def copy_score(
    argmax: Tensor, key_ids: Tensor, emitted: Tensor, needle: tuple[int, int], rule: str = "set", match: str = "token"
) -> Tensor:
    """Share of the needle that a head copied during one answer.

    Args:
        argmax: As in `copy_hits`.
        key_ids: As in `copy_hits`.
        emitted: As in `copy_hits`.
        needle: As in `copy_hits`.
        rule: `set`: distinct needle positions copied / needle length, in [0, 1] (the paper's formula, counted by position so that a needle
            with a repeated token can be copied in full). `multiset`: copying steps / needle length, which exceeds 1 when the model
            repeats itself (what the released code computes).
        match: As in `copy_hits`.

    Returns:
        float32 [...].
    """
    hits = copy_hits(argmax, key_ids, emitted, needle, match)
    length = needle[1] - needle[0]
    if rule == "multiset":
        return hits.float().sum(dim=-1) / length
    place = torch.where(hits, argmax - needle[0], length)
    reached = torch.zeros((*hits.shape[:-1], length + 1), device=hits.device)
    reached.scatter_(-1, place, 1.0)
    return reached[..., :length].sum(dim=-1) / length
