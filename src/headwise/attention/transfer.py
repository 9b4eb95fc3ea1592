"""Elastic loading (SpeContext, arXiv:2512.00722, sec. 4.3): the rows that a step reads are kept in slots, and only what changed is moved there.

On a CPU, and where keys lie on the device that reads them, every copy is done when it is asked for. From a host to CUDA there are two lanes: the
model computes on one, and rows are brought on the other, a stream of its own:

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
    """Two lanes, on each of which work runs in the order in which it is given; marks hold one back for the other."""

    def compute(self, work: Callable[[], None]) -> None:
        """Give work to the compute lane, to which the model gives its own."""

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


class CudaLanes:
    """The current stream of a CUDA device, and a second one for copies.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # by torch

    def compute(self, work: Callable[[], None]) -> None:
        """See `Lanes.compute`."""
        work()

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


def lanes_between(source: torch.device, target: torch.device) -> Lanes | None:
    """Lanes for copies from a host to CUDA; None between all other devices: every copy is done when it is asked for."""
    return CudaLanes(target) if source.type == "cpu" and target.type == "cuda" else None


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
    """Two lanes between two devices, with what belongs to them."""

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
            with torch.inference_mode(False):  # it outlives the pass that asks for it, and the next one may run in another mode
                side.rooms[key] = self.lanes.buffer(count, dtype)
        return side.rooms[key][:count].view(shape)

    def send(self, slots: Slots, keys: Tensor, values: Tensor, part: Exchange) -> None:
        """Give a part of a move to the copy lane, behind the fence."""
        places, rows = _named(slots, part)
        side = self.side()
        staged = [
            take_flat(table, *rows, self.room(side, name, (len(places), table.shape[3]), table.dtype))
            for name, table in (("keys", keys), ("values", values))
        ]
        where = self.room(side, "places", (len(places),), places.dtype).copy_(places)
        into = (slots.keys, slots.values)
        side.mark = slots.mark = self.lanes.copy(lambda: _put(into, where, staged), self.fence, into)


class Loader:
    """The slots of all layers, and what moves rows into them."""

    def __init__(self) -> None:
        self._slots: dict[int, Slots] = {}
        self._ways: dict[tuple[torch.device, torch.device], _Way | None] = {}

    @property
    def beside(self) -> bool:
        """Whether some copies run beside the computation, so that sending ahead gains something."""
        return any(self._ways.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(slots.keys.nbytes + slots.values.nbytes for slots in self._slots.values())

    def forget(self) -> None:
        """Drop all slots."""
        self._slots.clear()

    def begin(self) -> None:
        """A pass begins: the fences of the one before are old."""
        for way in self._ways.values():
            if way is not None:
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
        if way is None:
            _put_now(slots, keys, values, move.whole)
        else:
            way.fence = way.lanes.now()
            if slots.begun is not move and len(move.whole.slots):
                way.send(slots, keys, values, move.whole)
            if slots.mark is not None:
                way.lanes.hold(slots.mark)
            if slots.begun is move and move.parts is not None:
                # A row per KV head. On the copy lane it would stand behind what was sent ahead to all later layers, and so would this layer.
                rest = move.parts[1]
                way.lanes.compute(lambda: _put_now(slots, keys, values, rest))
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
        if way is None:
            return
        self._drop_begun(slots, moves)
        move = _move(slots, positions, moves, length)
        if way.fence is None:
            way.fence = way.lanes.now()
        if len(move.ahead(keys.shape[2]).slots):
            way.send(slots, keys, values, move.ahead(keys.shape[2]))
        slots.begun = move

    def _way(self, source: torch.device, target: torch.device) -> _Way | None:
        if (source, target) not in self._ways:
            lanes = lanes_between(source, target)
            self._ways[source, target] = None if lanes is None else _Way(lanes)
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


def _named(slots: Slots, part: Exchange) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The places [M] of a part of a move in the slots as rows, and what comes there: batch rows, KV heads and positions [M]."""
    groups, budget = slots.keys.shape[1:3]
    row, place = part.slots // budget, part.slots % budget
    if slots.held.shape[1] == groups:
        batch, group, position = row // groups, row % groups, part.positions
    else:  # one choice for all KV heads
        group = torch.arange(groups, device=row.device).repeat(len(row))
        batch, place, position = (each.repeat_interleave(groups) for each in (row, place, part.positions))
    return (batch * groups + group) * budget + place, (batch, group, position)


def _put(into: Sequence[Tensor], places: Tensor, tables: Sequence[Tensor]) -> None:
    """Write rows [M, d] into slots [B, G, budget, d], for keys and values."""
    device = into[0].device
    apart = device.type == "cuda"  # other devices say nothing about when a copy that does not block has ended
    places = places.to(device, non_blocking=apart)
    for store, rows in zip(into, tables, strict=True):
        store.view(-1, store.shape[-1]).index_copy_(0, places, rows.to(device, non_blocking=apart))


def _put_now(slots: Slots, keys: Tensor, values: Tensor, part: Exchange) -> None:
    """Make a part of a move where the computation runs."""
    places, rows = _named(slots, part)
    _put((slots.keys, slots.values), places, [take_flat(table, *rows) for table in (keys, values)])
