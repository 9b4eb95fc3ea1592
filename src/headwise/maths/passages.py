"""From attention per token to one number per passage (Zhang et al. 2025, arXiv:2506.09944, sec. 3; their released code for trimming)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError

NORMALIZE = ("sum", "mean", "sqrt")


def pool_passages(
    columns: Tensor, spans: Sequence[tuple[int, int]], trim: float | None = None, normalize: str = "sum", strict: bool = False
) -> Tensor:
    """Sum the values of each passage's tokens.

    Args:
        columns: [..., T], one value per token.
        spans: P ranges [start, stop).
        trim: Leave out tokens whose value is more than `trim` standard deviations (unbiased, over the passage's own tokens) below the
            passage's mean.
        normalize: `sum`, `mean` (divided by the passage's tokens) or `sqrt` (by their square root).
        strict: As the released code has it, a token exactly at the bound is left out too, so that passages of one token count 0.

    Returns:
        [..., P] float32.
    """
    if normalize not in NORMALIZE:
        raise HeadwiseError(f"unknown normalize {normalize!r}; use {', '.join(NORMALIZE)}")
    pooled = [_pool(columns[..., start:stop].float(), trim, strict) / _divisor(stop - start, normalize) for start, stop in spans]
    return torch.stack(pooled, dim=-1)


def _pool(values: Tensor, trim: float | None, strict: bool) -> Tensor:
    if trim is None:
        return values.sum(dim=-1)
    mean = values.mean(dim=-1, keepdim=True)
    spread = values.std(dim=-1, keepdim=True) if values.shape[-1] > 1 else torch.full_like(mean, torch.nan if strict else 0.0)
    bound = mean - trim * spread
    return values.where(values > bound if strict else values >= bound, torch.zeros_like(values)).sum(dim=-1)


def _divisor(length: int, normalize: str) -> float:
    return {"sum": 1.0, "mean": float(length), "sqrt": math.sqrt(length)}[normalize]
