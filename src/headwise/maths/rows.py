"""Row statistics: what a few query rows of each head look at, without ever holding an attention matrix.

For each query row: the visible key with the largest logit, the log-sum-exp of all visible logits, and the attention mass that
falls on each span. One pass over blocks of keys with a running maximum (Milakov & Gimelshein 2018; Dao et al. 2022), float32
whatever the model's dtype, grouped query heads folded into rows. Memory is O(heads x rows + heads x rows x block).

This is the torch version; another backend may stand beside it with the same signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096


@dataclass(frozen=True)
class Keys:
    """Keys (or values) of one layer in pieces that are not copied together, such as a shared past and new tokens.

    Attributes:
        segments: [B or 1, G, S_i, d] each, one after another along the sequence.
    """

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
    """Matrix product in which query head h meets KV head h // (H / G); nothing is repeated.

    Args:
        rows: [B, H, R, a], H % G == 0.
        columns: [B or 1, G, a, b].

    Returns:
        [B, H, R, b].
    """
    batch, heads, count, inner = rows.shape
    shared, groups, _, width = columns.shape
    if shared == 1 and batch > 1:
        folded = rows.reshape(batch, groups, -1, inner).transpose(0, 1).reshape(1, groups, -1, inner)
        product = (folded @ columns).view(groups, batch, -1, width).transpose(0, 1)
        return product.reshape(batch, heads, count, width)
    return (rows.reshape(batch, groups, -1, inner) @ columns).view(batch, heads, count, width)


@dataclass(frozen=True)
class RowStats:
    """Statistics of R query rows.

    Attributes:
        argmax: [B, H, R] int64, position of the key with the largest logit; the lowest position wins a tie; -1 if nothing is visible.
        lse: [B, H, R] float32, log-sum-exp of the visible logits, sink logit included if the model has one.
        mass: [B, H, R, N] float32 in [0, 1], attention weight on each of N spans.

    lse and mass are NaN if only the argmax was asked for.
    """

    argmax: Tensor
    lse: Tensor
    mass: Tensor


def row_statistics(
    query: Tensor,
    keys: Sequence[Tensor],
    *,
    scaling: float,
    mask: Tensor | None = None,
    spans: Sequence[tuple[int, int]] = (),
    softcap: float | None = None,
    sinks: Tensor | None = None,
    argmax_only: bool = False,
    positions: Tensor | None = None,
    block: int = BLOCK,
) -> RowStats:
    """Statistics of the given query rows over all keys they may see; gradients of log-sum-exp and mass reach query and keys.

    Args:
        query: [B, H, R, d], the rows after position encoding. They are the *last* R keys unless `mask` says otherwise.
        keys: [B or 1, G, S_i, d] each, one after another along the sequence (batch 1 = shared by all batch rows); H % G == 0.
        scaling: Factor of query times key.
        mask: [B or 1, 1 or H, R, S] bool, True = visible, or None for causal.
        spans: N ranges [start, stop) of key positions.
        softcap: cap * tanh(logit / cap) before the softmax.
        sinks: [H], one extra logit per head that takes mass but is no key.
        argmax_only: Leave the sums out, which cost more than the comparison.
        positions: [B or 1, 1 or H, S] integers: where each key stands in the text; None: key i stands at i.
        block: Keys per step.
    """
    batch, heads, rows, _ = query.shape
    device = query.device
    best = torch.full((batch, heads, rows), -torch.inf, device=device)
    where = torch.full((batch, heads, rows), -1, dtype=torch.int64, device=device)
    total = torch.zeros((batch, heads, rows), device=device)
    mass = torch.zeros((batch, heads, rows, len(spans)), device=device)
    for start, logits in visible_logits(query, Keys(tuple(keys)), scaling, mask, softcap, block):
        width = logits.shape[-1]
        places = torch.arange(start, start + width, device=device) if positions is None else positions[..., start : start + width]
        top = logits.argmax(dim=-1, keepdim=True)
        peak = logits.gather(-1, top).squeeze(-1)
        first = top.squeeze(-1) + start  # where keys are in order, the lowest of equal ones
        where = torch.where(peak > best, first, where) if positions is None else _lowest(where, best, peak, logits, places)
        highest = torch.maximum(best, peak)
        if argmax_only:
            best = highest
            continue
        # exp(-inf - -inf) would be NaN where nothing has been visible yet.
        anchor = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
        rescale = torch.exp(best - anchor)
        weights = torch.exp(logits - anchor.unsqueeze(-1))
        total = total * rescale + weights.sum(dim=-1)
        if spans:
            mass = mass * rescale.unsqueeze(-1) + weights @ _membership(spans, places)
        best = highest
    if argmax_only:
        return RowStats(where, torch.full_like(best, torch.nan), torch.full_like(mass, torch.nan))
    lse = torch.log(total) + torch.where(best.isinf(), torch.zeros_like(best), best)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float().view(1, heads, 1))
    share = torch.exp(torch.where(best.isinf(), torch.zeros_like(best), best) - lse)
    return RowStats(where, lse, mass * torch.nan_to_num(share, posinf=0.0).unsqueeze(-1))


def _lowest(where: Tensor, best: Tensor, peak: Tensor, logits: Tensor, places: Tensor) -> Tensor:
    """The lowest position among the largest logits so far, where keys are in no order."""
    tied = (logits == peak.unsqueeze(-1)) & ~logits.isneginf()
    here = places.long().unsqueeze(-2).masked_fill(~tied, torch.iinfo(torch.int64).max).amin(dim=-1)
    here = torch.where(peak == best, torch.minimum(here, where), here)
    return torch.where((peak < best) | peak.isneginf(), where, here)


def _membership(spans: Sequence[tuple[int, int]], places: Tensor) -> Tensor:
    """[..., width, N] float: 1 where a key at `places` [..., width] lies in span n."""
    bounds = torch.tensor(spans, device=places.device)
    places = places.unsqueeze(-1)
    return ((places >= bounds[:, 0]) & (places < bounds[:, 1])).float()
