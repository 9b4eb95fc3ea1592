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


def split(held: Tensor, move: Exchange, there: int) -> tuple[Exchange, Exchange]:
    """Cut an exchange in two: positions below `there`, and the rest, whose slots hold nothing between the two.

    Args:
        held: [B, G, budget] int64, what the slots held before it.
        move: The exchange from there.
        there: At or above 0.
    """
    early = move.positions < there
    between = move.held.flatten().clone()
    between[move.slots[~early]] = -1
    first = Exchange(move.slots[early], move.positions[early], between.view_as(held))
    return first, Exchange(move.slots[~early], move.positions[~early], move.held)


def take_rows(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of keys or values at positions, one list per row and KV head.

    Gathering whole rows by one flat index costs a tenth of `torch.gather`, which looks up every single number.

    Args:
        table: [B, G, S, d], any strides.
        positions: [B, G or 1, n] int64 at or above 0.

    Returns:
        [B, G, n, d], contiguous.
    """
    batch, groups, _, width = table.shape
    wide = positions.expand(batch, groups, positions.shape[-1])
    flat = None if table.requires_grad else _flat(table)
    if flat is None:
        return table.gather(2, wide[..., None].expand(*wide.shape, width))
    rows, row, head = flat
    batches = torch.arange(batch, device=table.device).view(-1, 1, 1) * row
    heads = torch.arange(groups, device=table.device).view(1, -1, 1) * head
    return rows.index_select(0, (wide + batches + heads).flatten()).view(batch, groups, -1, width)


def take_flat(table: Tensor, batch: Tensor, group: Tensor, position: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of keys or values, each named by batch row, KV head and position.

    Args:
        table: [B, G, S, d], any strides.
        batch: [M] int64.
        group: [M] int64.
        position: [M] int64.
        out: [M, d] to write into; None: a new tensor.

    Returns:
        [M, d].
    """
    flat = None if table.requires_grad else _flat(table)
    if flat is None:
        rows = table[batch, group, position]
        return rows if out is None else out.copy_(rows)
    index = batch * flat[1] + group * flat[2] + position
    return flat[0].index_select(0, index) if out is None else torch.index_select(flat[0], 0, index, out=out)


def _flat(table: Tensor) -> tuple[Tensor, int, int] | None:
    """A table [B, G, S, d] as rows [n, d], with the rows from one batch row to the next, and from one KV head to the next.

    None where its strides forbid it.
    """
    batch, groups, length, width = table.shape
    row, head, step, inner = table.stride()
    if inner != 1 or step == 0 or row % step or head % step:
        return None
    rows = ((batch - 1) * row + (groups - 1) * head) // step + length
    return table.as_strided((rows, width), (step, 1)), row // step, head // step


def overlap(before: Tensor, now: Tensor, length: int) -> Tensor:
    """[B, G] float32 in [0, 1]: share of the positions [B, G, n] chosen now that were chosen before; -1 counts as nothing."""
    same = marked(before, length) & marked(now, length)
    return same.sum(dim=-1).float() / (now >= 0).sum(dim=-1).clamp(min=1)
