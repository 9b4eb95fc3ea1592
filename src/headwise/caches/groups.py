"""What a layer of a compressed cache holds: groups of KV heads that keep equally many positions, and nothing else.

A `Growing` group takes every new token; a `Sliding` one keeps the first tokens (sinks) and the most recent ones in place, so that its size
never changes. Keys keep the rotation of their original position, and both know which position each of them has.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError

SPARE, SPARE_SHARE = 16, 128  # a group that must grow gets room for so many positions, or for one in so many that it holds
EMPTY = -1  # position of padding and of places not yet used


class Window(NamedTuple):
    """The first and the last positions of a text, the newest token included.

    Attributes:
        sinks: How many first ones, at least 0.
        recent: How many last ones, at least 1.
    """

    sinks: int
    recent: int

    @property
    def size(self) -> int:
        """Positions it holds."""
        return self.sinks + self.recent


class Arrival(NamedTuple):
    """Positions of new tokens.

    Attributes:
        start: Position of the first one, in every row.
        tokens: How many, T.
        rows: [B, T] int32, positions of each row in place of `start` where a batch has padding (`EMPTY`); None: no padding.
    """

    start: int
    tokens: int
    rows: Tensor | None = None

    def positions(self, device: torch.device) -> Tensor:
        """[B or 1, tokens] int32."""
        if self.rows is not None:
            return self.rows
        return torch.arange(self.start, self.start + self.tokens, dtype=torch.int32, device=device)[None]


class Part(NamedTuple):
    """What the query heads of some KV heads attend to; the last T keys are the new tokens unless there is a mask.

    Attributes:
        heads: [n] int64, indices of KV heads, None for all.
        keys, values: [B, n, S, d].
        positions: [B or 1, n or 1, S] int32, position in the text, `EMPTY` for none; None: key i stands at i.
        mask: Bool [B or 1, n or 1, T, S], or None where new tokens see all that is held and one another causally.
        window: The new tokens see their own windows; the keys are those of a whole text then.
    """

    heads: Tensor | None
    keys: Tensor
    values: Tensor
    positions: Tensor | None
    mask: Tensor | None = None
    window: Window | None = None


@dataclass
class Group(ABC):
    """KV heads of one layer with equally many positions.

    Attributes:
        heads: [n], which KV heads, None for all in order.
        keys: Buffer [B, n, room, d].
        values: Buffer [B, n, room, d].
        positions: [B or 1, n or 1, room] int32, position in the text, `EMPTY` for none.
        used: How many places of the buffers hold something.
        holes: Some used place is empty.
        lent: The buffers are shared with a fork, so they are copied before they change.
    """

    heads: Tensor | None
    keys: Tensor
    values: Tensor
    positions: Tensor
    used: int
    holes: bool = False
    lent: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, spare room included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.keys, self.values, self.positions))

    @abstractmethod
    def take(self, keys: Tensor, values: Tensor, new: Arrival) -> Part:
        """Add new tokens.

        Args:
            keys: [B, n, T, d] of this group's heads, after rotation.
            values: [B, n, T, d].
            new: Their positions.

        Returns:
            What the new tokens attend to. Its keys and values may be views of the buffers: good until the group changes again.
        """

    @abstractmethod
    def drop(self, count: int) -> None:
        """Take the newest `count` positions away again. Raises `HeadwiseError` where they cannot be."""

    def fork(self) -> Group:
        """The same content, shared until one side changes."""
        self.lent = True
        return copy.copy(self)

    def select_rows(self, rows: Tensor) -> None:
        """Make these batch rows the rows (beam search, repeated prompts)."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        own = self.positions.shape[0] > 1
        self.positions = self.positions.index_select(0, rows) if own else self.positions.clone()
        self.lent = False

    def _held(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys[:, :, : self.used], self.values[:, :, : self.used], self.positions[..., : self.used]

    def _rows_for(self, new: Arrival) -> None:
        """Positions of their own for every row, once rows differ."""
        if new.rows is not None:
            self.holes = True
            if self.positions.shape[0] < new.rows.shape[0]:
                self.positions = self.positions.repeat(new.rows.shape[0], 1, 1)


@dataclass
class Growing(Group):
    """Keeps what it was given and every new token."""

    def take(self, keys: Tensor, values: Tensor, new: Arrival) -> Part:
        """Add new tokens at the end; see `Group.take`. All that is held is attended to, so there is a mask only if places are empty."""
        stop = self.used + new.tokens
        self._rows_for(new)
        if stop > self.keys.shape[2] or self.lent:
            self._move(stop + max(SPARE, stop // SPARE_SHARE))
        self.keys[:, :, self.used : stop], self.values[:, :, self.used : stop] = keys, values
        one = new.rows is None and new.tokens == 1  # the common case while decoding, without a tensor of its own
        self.positions[..., self.used : stop] = new.start if one else new.positions(keys.device)[:, None]
        self.used = stop
        held_keys, held_values, positions = self._held()
        mask = seen_mask(positions, positions[..., -new.tokens :], None) if self.holes else None
        return Part(self.heads, held_keys, held_values, positions, mask)

    def drop(self, count: int) -> None:
        """Take the newest `count` positions away again. Raises `HeadwiseError` if fewer are held."""
        if count > self.used:
            raise HeadwiseError(f"cannot remove {count} tokens: a head holds only {self.used}")
        self.used -= count

    def _move(self, room: int) -> None:
        """To buffers of its own with `room` places."""
        batch, count, _, width = self.keys.shape
        keys = self.keys.new_empty(batch, count, room, width)
        values = self.values.new_empty(batch, count, room, self.values.shape[-1])
        positions = self.positions.new_full((*self.positions.shape[:2], room), EMPTY)
        old = self._held()
        keys[:, :, : self.used], values[:, :, : self.used], positions[..., : self.used] = old
        self.keys, self.values, self.positions, self.lent = keys, values, positions, False


@dataclass
class Sliding(Group):
    """Keeps a window (StreamingLLM, Xiao et al. 2024, section 3.2, but with keys rotated for their positions in the text).

    Attributes:
        window: Which positions.
        exact: Every token of a block sees its own window; otherwise all that was held when its block came (DuoAttention).
    """

    window: Window = field(default_factory=lambda: Window(0, 1))
    exact: bool = False

    @classmethod
    def empty(cls, heads: Tensor | None, keys: Tensor, values: Tensor, window: Window, exact: bool) -> Sliding:
        """A window without content.

        Args:
            heads: [n] int64, KV heads; None for all in order.
            keys: [B, n, T, d]; rows, heads, width, dtype and device of the buffers are taken from it.
            values: [B, n, T, d], likewise.
            window: Which positions it keeps.
            exact: As the attribute of that name.
        """
        shape = (*keys.shape[:2], window.size)
        positions = torch.full((1, 1, window.size), EMPTY, dtype=torch.int32, device=keys.device)
        buffers = keys.new_empty(*shape, keys.shape[-1]), values.new_empty(*shape, values.shape[-1])
        return cls(heads, *buffers, positions, used=0, window=window, exact=exact)

    def take(self, keys: Tensor, values: Tensor, new: Arrival) -> Part:
        """Add new tokens where they belong in the window; see `Group.take`.

        A block of several tokens attends to what was held before it came and to itself, since storing it overwrites what its first tokens see.
        """
        if self.lent:
            self.keys, self.values, self.positions = self.keys.clone(), self.values.clone(), self.positions.clone()
            self.lent = False
        self._rows_for(new)
        asking = new.positions(keys.device)[:, None]
        if new.tokens == 1:  # the window is then just what it sees
            self._store(keys, values, new)
            held_keys, held_values, positions = self._held()
            return Part(self.heads, held_keys, held_values, positions, seen_mask(positions, asking, None) if self.holes else None)
        if self.exact and not self.holes and new.start == 0:
            self._store(keys, values, new)
            return Part(self.heads, keys, values, None, window=self.window)
        held_keys, held_values, positions = self._held()
        rows = max(positions.shape[0], asking.shape[0])
        seen = torch.cat([positions.expand(rows, -1, -1), asking.expand(rows, -1, -1)], dim=-1)
        part = Part(
            self.heads,
            torch.cat([held_keys, keys], dim=2),
            torch.cat([held_values, values], dim=2),
            seen,
            seen_mask(seen, asking, self.window if self.exact else None) if self.holes or self.exact else None,
        )
        self._store(keys, values, new)
        return part

    def drop(self, count: int) -> None:
        """Always raises `HeadwiseError`, unless `count` is 0: older tokens have been overwritten."""
        if count:
            raise HeadwiseError(
                "a sliding window cannot remove its newest tokens, because it has overwritten older ones; fork the cache first"
            )

    def _store(self, keys: Tensor, values: Tensor, new: Arrival) -> None:
        if new.rows is not None:
            for row, positions in enumerate(new.rows):
                real = (positions >= 0).nonzero().flatten()
                if len(real):
                    start = int(positions[real[0]])
                    self._store_row(slice(row, row + 1), keys[row : row + 1, :, real], values[row : row + 1, :, real], start)
            return
        self._store_row(slice(None), keys, values, new.start)

    def _store_row(self, rows: slice, keys: Tensor, values: Tensor, start: int) -> None:
        """Tokens at start, start + 1, ...: a sink in its own place, others in turn over the recent ones."""
        sinks, recent = self.window
        stop = start + keys.shape[2]
        first = max(start, sinks, stop - recent)  # older ones would be overwritten at once
        chosen = [*range(start, min(stop, sinks)), *range(first, stop)]
        slots = [at if at < sinks else sinks + (at - sinks) % recent for at in chosen]
        places = [at - start for at in chosen]
        if len(chosen) == 1:
            self.keys[rows, :, slots[0]], self.values[rows, :, slots[0]] = keys[:, :, places[0]], values[:, :, places[0]]
            self.positions[rows, :, slots[0]] = chosen[0]
        else:
            to, of = (torch.tensor(numbers, device=keys.device) for numbers in (slots, places))
            self.keys[rows, :, to], self.values[rows, :, to] = keys[:, :, of], values[:, :, of]
            self.positions[rows, :, to] = torch.tensor(chosen, dtype=torch.int32, device=keys.device)
        self.used = max(self.used, min(stop, self.window.size))


def seen_mask(seen: Tensor, asking: Tensor, window: Window | None) -> Tensor:
    """Which keys a query may look at: no empty place, nothing later than itself, nothing outside of its window.

    Args:
        seen: Positions of the keys [B or 1, n or 1, S], `EMPTY` for none.
        asking: Positions of the queries [B or 1, n or 1, T].
        window: Sinks and recent ones before each query; None: all.

    Returns:
        Bool [B or 1, n or 1, T, S], True = visible.
    """
    seen, asking = seen[..., None, :], asking[..., None]
    mask = (seen != EMPTY) & (seen <= asking)
    if window is not None:
        mask &= (seen < window.sinks) | (asking - seen < window.recent)
    return mask
