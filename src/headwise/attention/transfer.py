"""Elastic loading (SpeContext, arXiv:2512.00722, sec. 4.3): the rows that a step reads are kept in slots, and only what changed is moved there.

Work runs on two lanes: the model computes on one, rows are brought from the host on the other. On a CPU, and where keys lie on the device that
reads them, there is one lane and every copy is done when it is asked for. On CUDA the copy lane is a stream of its own:

- Rows are gathered on the host into pinned buffers, two in turn; the host fills one again when the copy that read it two copies ago has ended.
- A copy writes into slots only behind a mark on the compute lane that lies behind everything that was given to the device before, the last reader
  of these slots among it.
- What reads a layer's slots waits for the mark behind that layer's own copy, and for no other.

Once one choice holds for all layers, the rows of later layers can be sent while the first one computes (`Loader.send_ahead`). The newest token's
rows are not there yet; they follow when the layer comes to its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from headwise.maths.slots import Exchange, exchange, split, take_flat


class Lanes(Protocol):
    """Where work runs: in order on each of two lanes, and across them by marks.

    Attributes:
        beside: Copies run beside the computation. False: they have ended when `copy` returns, and marks mean nothing.
    """

    beside: bool

    def now(self) -> Any:
        """A mark behind all that the compute lane has been given so far."""

    def copy(self, work: Callable[[], None], after: Any, into: Sequence[Tensor]) -> Any:
        """Give work to the copy lane.

        Args:
            work: Copies something.
            after: Mark of the compute lane behind which it runs.
            into: Tensors of the compute lane that it writes.

        Returns:
            The mark behind it, and so behind all copies before it.
        """

    def hold(self, mark: Any) -> None:
        """Whatever the compute lane is given from now on runs behind a mark of the copy lane."""

    def finish(self, mark: Any) -> None:
        """Keep the host waiting until a mark of the copy lane is reached."""

    def buffer(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """[numbers] in memory of the host from which copies run beside the computation."""


class OneLane:
    """Everything is done at once, in the order in which it is asked for."""

    beside = False

    def now(self) -> None:
        """See `Lanes.now`."""

    def copy(self, work: Callable[[], None], after: Any, into: Sequence[Tensor]) -> None:
        """See `Lanes.copy`."""
        work()

    def hold(self, mark: Any) -> None:
        """See `Lanes.hold`."""

    def finish(self, mark: Any) -> None:
        """See `Lanes.finish`."""

    def buffer(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """See `Lanes.buffer`."""
        return torch.empty(numbers, dtype=dtype)


class CudaLanes:
    """The current stream of a CUDA device, and a second one for copies.

    Args:
        device: The device.
    """

    beside = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # by torch

    def now(self) -> Any:
        """See `Lanes.now`."""
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, work: Callable[[], None], after: Any, into: Sequence[Tensor]) -> Any:
        """See `Lanes.copy`."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            work()
            for tensor in into:  # their memory must not be given away while this runs, should they be dropped
                tensor.record_stream(self._stream)
            return self._stream.record_event()

    def hold(self, mark: Any) -> None:
        """See `Lanes.hold`."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: Any) -> None:
        """See `Lanes.finish`."""
        mark.synchronize()

    def buffer(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """See `Lanes.buffer`. Pinned: from other memory, `non_blocking` copies would block."""
        return torch.empty(numbers, dtype=dtype, pin_memory=True)


def lanes_between(source: torch.device, target: torch.device) -> Lanes:
    """Lanes for copies from one device to another: two from a host to CUDA, otherwise one."""
    return CudaLanes(target) if source.type == "cpu" and target.type == "cuda" else OneLane()


@dataclass
class Slots:
    """Keys and values of one layer that steps read, and their positions.

    Attributes:
        keys, values: [B, G, budget, d].
        held: [B, G or 1, budget] int64, the position in each slot; -1 for nothing.
        begun: A move of which everything but the newest rows has been sent.
        mark: Behind the last copy into these slots.
    """

    keys: Tensor
    values: Tensor
    held: Tensor
    begun: Move | None = None
    mark: Any = None


@dataclass
class Move:
    """From what slots held to what they shall hold; made once for all layers that held the same.

    Attributes:
        before: What they held.
        whole: All that has to be moved.
        parts: `whole` cut in two: what could be sent ahead, and the rest; None if nothing was.
    """

    before: Tensor
    whole: Exchange
    parts: tuple[Exchange, Exchange] | None = None

    def ahead(self, there: int) -> Exchange:
        """What can be sent while only the first `there` positions are in the store, the same number for all layers of a step."""
        if self.parts is None:
            self.parts = split(self.before, self.whole, there)
        return self.parts[0]


@dataclass
class _Side:
    """One of two buffers, with the mark behind the copy that reads it."""

    rooms: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)
    mark: Any = None


class _Way:
    """Lanes between two devices, with what belongs to them."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.fence: Any = None  # of this step, on the compute lane; None before the first one
        self._sides = (_Side(), _Side())
        self._turn = 0

    def side(self) -> _Side:
        """The buffer whose turn it is, free to be written."""
        self._turn = 1 - self._turn
        side = self._sides[self._turn]
        if side.mark is not None:
            self.lanes.finish(side.mark)
        return side

    def room(self, side: _Side, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A part of a buffer; it grows if it must."""
        count, key = prod(shape), (name, dtype)
        if key not in side.rooms or len(side.rooms[key]) < count:
            side.rooms[key] = self.lanes.buffer(count, dtype)
        return side.rooms[key][:count].view(shape)


class Loader:
    """The slots of all layers, and what moves rows into them."""

    def __init__(self) -> None:
        self._slots: dict[int, Slots] = {}
        self._ways: dict[tuple[torch.device, torch.device], _Way] = {}

    @property
    def beside(self) -> bool:
        """Whether some copies run beside the computation, so that sending ahead gains something."""
        return any(way.lanes.beside for way in self._ways.values())

    def forget(self) -> None:
        """Drop all slots."""
        self._slots.clear()

    def begin(self) -> None:
        """A pass begins: the fences of the one before are old."""
        for way in self._ways.values():
            way.fence = None

    def load(
        self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, moves: list[Move], device: torch.device
    ) -> tuple[Slots, int]:
        """Make the slots of a layer hold chosen positions. What the compute lane is given from now on may read them.

        Args:
            layer: Decoder layer.
            keys: [B, G, S, d] where all positions are kept.
            values: [B, G, S, width of values], likewise.
            positions: [B, G or 1, budget] int64, -1 for nothing.
            moves: Of this step, for all layers that share the choice; a move that another layer made is used again, a new one is added.
            device: Where slots are, and where they are read.

        Returns:
            The slots, and the number of positions that this step moves into them, those sent ahead included.
        """
        way = self._way(keys.device, device)
        slots = self._slots_of(layer, keys, values, positions, moves, device)
        self._drop_begun(slots, moves)
        move = _move(slots, positions, moves, keys.shape[2])
        part = move.parts[1] if slots.begun is move and move.parts is not None else move.whole
        way.fence = way.lanes.now()
        _send(way, slots, keys, values, part)
        if slots.mark is not None:
            way.lanes.hold(slots.mark)
        slots.held, slots.begun = move.whole.held, None
        return slots, len(move.whole.slots)

    def send_ahead(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, moves: list[Move], length: int) -> None:
        """Send what a layer will read before its turn, as far as it is there. Without effect where copies do not run beside the computation.

        Args:
            layer: Decoder layer.
            keys: [B, G, S, d] as the layer's store was before this step.
            values: As in `load`.
            positions: As in `load`, which must be called with the same ones in this step.
            moves: As in `load`.
            length: Above every position of the choice.
        """
        slots = self._slots.get(layer)
        if slots is None or slots.held.shape != positions.shape:
            return
        way = self._way(keys.device, slots.keys.device)
        if not way.lanes.beside:
            return
        self._drop_begun(slots, moves)
        move = _move(slots, positions, moves, length)
        if way.fence is None:
            way.fence = way.lanes.now()
        _send(way, slots, keys, values, move.ahead(keys.shape[2]))
        slots.begun = move

    def _way(self, source: torch.device, target: torch.device) -> _Way:
        if (source, target) not in self._ways:
            self._ways[source, target] = _Way(lanes_between(source, target))
        return self._ways[source, target]

    def _slots_of(
        self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, moves: list[Move], device: torch.device
    ) -> Slots:
        """Of a layer, with room for as many positions; new ones are empty."""
        slots = self._slots.get(layer)
        if slots is None or slots.held.shape != positions.shape:
            shape = (*keys.shape[:2], positions.shape[2])
            made = [torch.zeros((*shape, table.shape[3]), dtype=table.dtype, device=device) for table in (keys, values)]
            empty = next((move.before for move in moves if bool((move.before < 0).all())), torch.full_like(positions, -1))
            slots = self._slots[layer] = Slots(made[0], made[1], empty)
        return slots

    @staticmethod
    def _drop_begun(slots: Slots, moves: list[Move]) -> None:
        """A move of an earlier step that its layer never finished, because it read everything: the slots hold what was sent."""
        begun = slots.begun
        if begun is not None and begun.parts is not None and not any(begun is move for move in moves):
            slots.held, slots.begun = begun.parts[0].held, None


def _move(slots: Slots, positions: Tensor, moves: list[Move], length: int) -> Move:
    """The move from what slots hold, shared with layers that held the same."""
    move = next((move for move in moves if move.before is slots.held), None)
    if move is None:
        move = Move(slots.held, exchange(slots.held, positions, length))
        moves.append(move)
    return move


def _send(way: _Way, slots: Slots, keys: Tensor, values: Tensor, part: Exchange) -> None:
    """Copy a part of a move into slots, behind the fence of the way."""
    groups, budget = slots.keys.shape[1:3]
    if not len(part.slots):
        return
    row, place = part.slots // budget, part.slots % budget
    if slots.held.shape[1] == groups:
        b, g, position = row // groups, row % groups, part.positions
    else:  # one choice for all KV heads
        g = torch.arange(groups, device=row.device).repeat(len(row))
        b, place, position = (each.repeat_interleave(groups) for each in (row, place, part.positions))
    places = (b * groups + g) * budget + place
    pairs = ((keys, slots.keys, "keys"), (values, slots.values, "values"))
    if not way.lanes.beside:
        for table, store, _ in pairs:
            store.view(-1, store.shape[-1])[places.to(store.device)] = take_flat(table, b, g, position).to(store.device)
        return
    side = way.side()
    staged = [
        take_flat(table, b, g, position, way.room(side, name, (len(places), table.shape[3]), table.dtype))
        for table, _, name in pairs
    ]
    where = way.room(side, "places", (len(places),), places.dtype).copy_(places)

    def work() -> None:
        there = where.to(slots.keys.device, non_blocking=True)
        for (_, store, _), rows in zip(pairs, staged, strict=True):
            store.view(-1, store.shape[-1]).index_copy_(0, there, rows.to(store.device, non_blocking=True))

    side.mark = slots.mark = way.lanes.copy(work, way.fence, (slots.keys, slots.values))
