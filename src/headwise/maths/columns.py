"""Column statistics: how much attention a few query rows pay to every single key, without holding an attention matrix.

Beside the row statistics (`rows.py`): those say where a row looks, these say who is looked at. Two passes over blocks of keys (the
log-sum-exp of each row, then the sums), float32 whatever the model's dtype; a single block is kept and not computed twice.

From columns to one number per passage: Zhang et al. 2025, arXiv:2506.09944, sec. 3; their released code for trimming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import BLOCK, Keys, visible_logits

NORMALIZE = ("sum", "mean", "sqrt")


def attention_columns(
    query: Tensor,
    keys: Sequence[Tensor],
    *,
    scaling: float,
    weights: Tensor,
    stop: int,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Sum over query rows of row weight x attention weight, for the keys before position `stop`.

    Args:
        query: [B, H, R, d].
        keys: Segments [B or 1, G, S_i, d].
        scaling: Factor of query times key.
        weights: [B, R], how much each query row counts (1 / n on n rows gives their mean attention; 0 leaves a row out).
        stop: Columns are the keys 0 to `stop` - 1.
        mask: As in `row_statistics`.
        softcap: As in `row_statistics`.
        sinks: As in `row_statistics`.
        block: Keys per step.

    Returns:
        [B, H, stop] float32.
    """
    segments = Keys(tuple(keys))
    logits = list(visible_logits(query, segments, scaling, mask, softcap, block)) if segments.length <= block else None
    again = (lambda: logits) if logits is not None else (lambda: visible_logits(query, segments, scaling, mask, softcap, block))
    lse = torch.full(query.shape[:3], -torch.inf, device=query.device)
    for _, part in again():
        lse = torch.logaddexp(lse, part.logsumexp(dim=-1))
    lse = _normaliser(lse, sinks)
    columns = query.new_zeros((*query.shape[:2], stop), dtype=torch.float32)
    for start, part in again():
        width = min(stop - start, part.shape[-1])
        if width > 0:
            shares = torch.exp(part[..., :width] - lse.unsqueeze(-1))
            columns[..., start : start + width] += torch.einsum("br,bhrs->bhs", weights.float(), shares)
    return columns


def attention_rows(
    query: Tensor,
    keys: Sequence[Tensor],
    *,
    scaling: float,
    stop: int,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Attention weights of a few query rows on the keys before position `stop`.

    Args:
        query: [B, H, R, d]; the result has as many rows, so give few.
        keys: Segments [B or 1, G, S_i, d].
        scaling: Factor of query times key.
        stop: Columns are the keys 0 to `stop` - 1.
        mask: As in `row_statistics`.
        softcap: As in `row_statistics`.
        sinks: As in `row_statistics`.
        block: Keys per step.

    Returns:
        [B, H, R, stop] float32; 0 where a row may not look, and for keys that do not exist.
    """
    lse = torch.full(query.shape[:3], -torch.inf, device=query.device)
    rows = query.new_full((*query.shape[:3], stop), -torch.inf, dtype=torch.float32)
    for start, part in visible_logits(query, Keys(tuple(keys)), scaling, mask, softcap, block):
        lse = torch.logaddexp(lse, part.logsumexp(dim=-1))
        width = min(stop - start, part.shape[-1])
        if width > 0:
            rows[..., start : start + width] = part[..., :width]
    lse = _normaliser(lse, sinks)
    return torch.exp(rows - lse.unsqueeze(-1))


def _normaliser(lse: Tensor, sinks: Tensor | None) -> Tensor:
    """What logits are reduced by before they are exponentiated: the log-sum-exp [B, H, R] over keys, with the sink's share."""
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().view(1, -1, 1))
    return lse.masked_fill(lse.isneginf(), 0)  # rows that see nothing: exp(-inf - 0) = 0


def pool_passages(
    columns: Tensor, spans: Sequence[tuple[int, int]], trim: float | None = None, normalize: str = "sum", strict: bool = False
) -> Tensor:
    """Sum the values of each passage's tokens.

    Args:
        columns: [..., T], one value per token.
        spans: P ranges [start, stop).
        trim: Leave out tokens whose value is more than `trim` standard deviations (unbiased, over the passage's own tokens) below the
            passage's mean; None: count all.
        normalize: `sum`, `mean` (divided by the passage's tokens) or `sqrt` (by their square root).
        strict: As the released code has it, a token exactly at the bound is left out too, so that passages of one token count 0.

    Returns:
        [..., P] float32.

    Raises:
        HeadwiseError: Another `normalize`.
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
