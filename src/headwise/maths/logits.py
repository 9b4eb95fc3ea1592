"""Attention logits of a few rows, block of keys by block of keys: the piece that row statistics and exact attention share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """Keys (or values) in segments along the sequence: [B or 1, G, S_i, d] each."""

    segments: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Positions in all segments."""
        return sum(segment.shape[2] for segment in self.segments)

    def blocks(self, width: int) -> Iterator[tuple[int, Tensor]]:
        """(first position, [B or 1, G, <= width, d]) one after another; a block never crosses segments."""
        offset = 0
        for segment in self.segments:
            for start in range(0, segment.shape[2], width):
                yield offset + start, segment[:, :, start : start + width]
            offset += segment.shape[2]


def visible_logits(
    query: Tensor, keys: Keys, scaling: float, mask: Tensor | None, softcap: float | None, block: int
) -> Iterator[tuple[int, Tensor]]:
    """Attention logits of some rows, one block of keys after another.

    Args:
        query: [B, H, R, d], the last R positions if `mask` is None.
        keys: S positions in all.
        scaling: Factor of query times key.
        mask: [B or 1, 1 or H, R, S] bool, True = visible; None: causal.
        softcap: cap * tanh(logit / cap).
        block: Keys per step.

    Yields:
        (Index of the first key, logits [B, H, R, block] float32 with -inf where a row may not look).
    """
    rows, length = query.shape[2], keys.length
    position = torch.arange(length - rows, length, device=query.device)
    query = query.float() * scaling
    for start, part in keys.blocks(block):
        logits = grouped_product(query, part.float().transpose(-1, -2))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        stop = start + part.shape[2]
        if mask is not None:
            logits = logits.masked_fill(~mask[..., start:stop], -torch.inf)
        elif stop > length - rows + 1:
            # Every row sees the keys before the first row; only the keys of the rows themselves need a mask.
            first = max(start, length - rows)
            key_position = torch.arange(first, stop, device=query.device)
            logits[..., first - start :].masked_fill_(key_position > position.unsqueeze(-1), -torch.inf)
        yield start, logits


def grouped_product(rows: Tensor, columns: Tensor) -> Tensor:
    """[B, H, R, a] @ [B or 1, G, a, b] -> [B, H, R, b], where query head h meets KV head h // (H / G); nothing is repeated."""
    batch, heads, count, inner = rows.shape
    shared, groups, _, width = columns.shape
    if shared == 1 and batch > 1:
        folded = rows.reshape(batch, groups, -1, inner).transpose(0, 1).reshape(1, groups, -1, inner)
        product = (folded @ columns).view(groups, batch, -1, width).transpose(0, 1)
        return product.reshape(batch, heads, count, width)
    return (rows.reshape(batch, groups, -1, inner) @ columns).view(batch, heads, count, width)
