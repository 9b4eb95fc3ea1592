"""Attention in which every token sees the first tokens and the most recent ones, in time and memory linear in the length.

The "Lambda" mask of StreamingLLM (Xiao et al. 2024) and of DuoAttention's streaming heads (Xiao et al. 2024, section 2.2): key i is visible to
query t if i <= t and (i < sinks or t - i < recent). Queries are cut into blocks as long as the window, so that a block and the one before it
hold all recent keys; blocks are folded into the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from headwise.maths.attend import attend

MIN_BLOCK = 32  # positions; shorter windows still use blocks of this size


def sink_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sinks: int,
    recent: int,
    scaling: float,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Softmax attention over a whole text.

    Args:
        query: [B, H, T, d].
        key: [B, G, T, d], H % G == 0.
        value: [B, G, T, d].
        sinks: First tokens that all see, at least 0.
        recent: Last tokens that each sees, itself included, at least 1.
        scaling: Factor of query times key.
        softcap: As in `attend`.
        sink_logits: [H], as `sinks` of `attend`.

    Returns:
        [B, T, H, d].
    """
    batch, length = query.shape[0], query.shape[2]
    block = max(recent, MIN_BLOCK)
    count = -(-length // block)
    first = min(sinks, length)
    folded = _blocks(query, block, count).transpose(1, 2).flatten(0, 1)
    keys, values = (_with_sinks_and_previous(tensor, block, count, first) for tensor in (key, value))
    mask = _visible(block, count, first, sinks, recent, query.device)
    mask = mask[:, None].repeat(batch, 1, 1, 1)
    out = attend(folded, keys, values, scaling=scaling, mask=mask, softcap=softcap, sinks=sink_logits)
    return out.reshape(batch, count * block, *out.shape[2:])[:, :length]


def _blocks(tensor: Tensor, block: int, count: int) -> Tensor:
    """[B, H, T, d] -> [B, H, count, block, d], zeros behind the end."""
    batch, heads, length, width = tensor.shape
    return pad(tensor, (0, 0, 0, count * block - length)).view(batch, heads, count, block, width)


def _with_sinks_and_previous(tensor: Tensor, block: int, count: int, first: int) -> Tensor:
    """[B, G, T, d] -> [B * count, G, first + 2 block, d]: the first tokens, the block before, the block itself."""
    own = _blocks(tensor, block, count)
    before = pad(own, (0, 0, 0, 0, 1, 0))[:, :, :count]
    lead = tensor[:, :, None, :first].expand(-1, -1, count, -1, -1)
    return torch.cat([lead, before, own], dim=3).transpose(1, 2).flatten(0, 1)


def _visible(block: int, count: int, first: int, sinks: int, recent: int, device: torch.device) -> Tensor:
    """[count, block, first + 2 block] bool. A sink inside the two blocks is seen once, in front."""
    start = torch.arange(count, device=device)[:, None] * block
    asking = start + torch.arange(block, device=device)
    local = start - block + torch.arange(2 * block, device=device)
    lead = torch.arange(first, device=device).expand(count, 1, -1) <= asking[:, :, None]
    distance = asking[:, :, None] - local[:, None]
    near = (distance >= 0) & (distance < recent) & (local >= sinks)[:, None]
    return torch.cat([lead, near], dim=-1)
