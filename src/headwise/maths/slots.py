"""Slots that hold chosen positions: what has to be moved from one choice to the next, and rows taken by position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Exchange(NamedTuple):
    """What has to be moved so that slots hold other positions.

    Attributes:
        slots: [M] int64, indices into the flattened [B * G * budget] slots that get something new.
        positions: [M] int64, the position that each of them gets.
        held: [B, G, budget] int64, what every slot holds afterwards; -1 for nothing.
    """

    slots: Tensor
    positions: Tensor
    held: Tensor


def exchange(held: Tensor, wanted: Tensor, length: int) -> Exchange:
    """The least that must be moved: what is wanted and held already stays in its slot.

    Args:
        held: [B, G, budget] int64, the position in each slot; -1 for nothing.
        wanted: [B, G, budget] int64, each position at most once per row; -1 for nothing.
        length: Above every position.

    Returns:
        As many moves as positions are wanted and not held.
    """
    is_wanted, is_held = marked(wanted, length), marked(held, length)
    stays = is_wanted.gather(-1, held.clamp(min=0)) & (held >= 0)
    arrives = ~is_held.gather(-1, wanted.clamp(min=0)) & (wanted >= 0)
    # Both lists in order, row by row; a row that wants fewer positions than it has slots leaves some slots empty.
    free, new = (~stays).flatten(0, 1), arrives.flatten(0, 1)
    place_of_free, place_of_new = free.cumsum(dim=-1) - 1, new.sum(dim=-1, keepdim=True)
    taken = (free & (place_of_free < place_of_new)).flatten().nonzero().flatten()
    positions = wanted.flatten(0, 1)[new]
    now = torch.where(stays, held, -1).flatten()
    now[taken] = positions
    return Exchange(taken, positions, now.view_as(held))


def marked(positions: Tensor, length: int) -> Tensor:
    """[..., length] bool: which positions of [..., n] occur; -1 marks nothing."""
    found = torch.zeros((*positions.shape[:-1], length + 1), dtype=torch.bool, device=positions.device)
    return found.scatter_(-1, torch.where(positions < 0, length, positions), True)[..., :length]


def take_rows(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of keys or values at positions, one list per row and KV head.

    Gathering whole rows by one flat index costs a tenth of `torch.gather`, which looks up every single number.

    Args:
        table: [B, G, S, d], any strides.
        positions: [B, G or 1, n] int64 at or above 0.

    Returns:
        [B, G, n, d], contiguous.
    """
    batch, groups, length, width = table.shape
    wide = positions.expand(batch, groups, positions.shape[-1])
    row, head, step, inner = table.stride()
    if inner != 1 or step == 0 or row % step or head % step or table.requires_grad:
        return table.gather(2, wide[..., None].expand(*wide.shape, width))
    rows = ((batch - 1) * row + (groups - 1) * head) // step + length
    flat = table.as_strided((rows, width), (step, 1))
    batches = torch.arange(batch, device=table.device).view(-1, 1, 1) * (row // step)
    heads = torch.arange(groups, device=table.device).view(1, -1, 1) * (head // step)
    return flat.index_select(0, (wide + batches + heads).flatten()).view(batch, groups, -1, width)


def overlap(before: Tensor, now: Tensor, length: int) -> Tensor:
    """[B, G] float32 in [0, 1]: share of the positions [B, G, n] chosen now that were chosen before; -1 counts as nothing."""
    same = marked(before, length) & marked(now, length)
    return same.sum(dim=-1).float() / (now >= 0).sum(dim=-1).clamp(min=1)
