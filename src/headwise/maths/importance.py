"""Which positions of a prompt matter to its last queries: the scores of window-based cache compression (SnapKV, Li et al. 2024, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from headwise.maths.columns import attention_columns


def window_attention(
    query: Tensor,
    keys: Tensor,
    rows: int,
    *,
    scaling: float,
    positions: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention from the last `rows` queries to every key, summed over the queries. Memory O(H x rows x block of keys).

    Args:
        query: [B, H, T, d] with T >= rows, the last positions of the keys.
        keys: [B, G, S, d].
        rows: How many queries look back.
        scaling: Factor of query times key.
        positions: [B, S], -1 where a row has padding.
        softcap: As in `row_statistics`.
        sinks: As in `row_statistics`.

    Returns:
        [B, H, S] float32.
    """
    mask = None
    if positions is not None:
        asking = positions[:, None, -rows:, None]
        mask = (positions >= 0)[:, None, None] & (positions[:, None, None] <= asking)
    weights = torch.ones(query.shape[0], rows, device=query.device)
    return attention_columns(
        query[:, :, -rows:],
        [keys],
        scaling=scaling,
        weights=weights,
        stop=keys.shape[2],
        mask=mask,
        softcap=softcap,
        sinks=sinks,
    )


def pooled(scores: Tensor, kernel: int) -> Tensor:
    """Moving average over neighbouring positions; beyond the ends stand zeros, as in SnapKV's code.

    Args:
        scores: [..., S], with at least one dimension in front.
        kernel: Odd width; 1 changes nothing.

    Returns:
        [..., S].
    """
    if kernel == 1:
        return scores
    return avg_pool1d(scores.flatten(0, -2)[:, None], kernel, stride=1, padding=kernel // 2)[:, 0].view(scores.shape)


def group_mean(scores: Tensor, groups: int) -> Tensor:
    """The mean over the query heads h = g * (H / G) ... of each KV head g.

    Args:
        scores: [B, H, S].
        groups: KV heads G, H % G == 0.

    Returns:
        [B, G, S].
    """
    return scores.view(scores.shape[0], groups, -1, scores.shape[-1]).mean(dim=2)


def group_largest(scores: Tensor, groups: int) -> Tensor:
    """The largest score among the query heads of each KV head; arguments and shapes as in `group_mean`."""
    return scores.view(scores.shape[0], groups, -1, scores.shape[-1]).amax(dim=2)
