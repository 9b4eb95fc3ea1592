"""Distillation of a draft layer: attention over several steps on its own states, and the loss that teaches it where a model attends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from headwise.maths.attend import softmax_rows
from headwise.maths.rows import grouped_product


def chained_attention(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of step i at position t: to keys of step 0 up to t - i, and to those of step m at t - i + m, which led there.

    Args:
        query: [B, H, T, d] of step i.
        keys: i + 1 times [B, G, T, d].
        values: Likewise.

    Returns:
        [B, H, T, d].
    """
    length, last = query.shape[2], len(keys) - 1
    query = query * query.shape[-1] ** -0.5
    order = torch.arange(length, device=query.device)
    logits = grouped_product(query, keys[0].transpose(-1, -2)).masked_fill(order > order[:, None] - last, -torch.inf)
    each = query.shape[1] // keys[0].shape[1]
    own = [(_behind(keys[m], last - m, each), _behind(values[m], last - m, each)) for m in range(1, last + 1)]
    extra = [(query * key).sum(dim=-1, keepdim=True) for key, _ in own]
    weights = softmax_rows(torch.cat([logits, *extra], dim=-1), None)
    mixed = grouped_product(weights[..., :length], values[0])
    for m, (_, value) in enumerate(own):
        mixed = mixed + weights[..., length + m, None] * value
    return mixed


def _behind(table: Tensor, places: int, each: int) -> Tensor:
    """[B, H, T, d]: what stood so many positions before."""
    moved = pad(table, (0, 0, places, 0))[:, :, : table.shape[2]] if places else table
    return moved.repeat_interleave(each, dim=1)


def attention_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy between where the model attends and where the query heads of each KV head do on average, per unit of attention.

    Args:
        logits: [B, H, R, T] of `head_rows`.
        wanted: [B, G, R, T] attention of the model on free positions. It need not sum to 1: a row that attends more to them counts more.
    """
    each = logits.shape[1] // wanted.shape[1]
    split = log_softmax(logits, dim=-1).view(logits.shape[0], wanted.shape[1], each, *logits.shape[2:])
    said = torch.logsumexp(split.clamp(min=-1e4), dim=2) - torch.log(torch.tensor(float(each)))
    return -(wanted * said).sum() / wanted.sum().clamp(min=1e-9)
