"""Elastic loading on two lanes: whatever runs first, no layer reads rows that have not arrived, and no slot changes while it may be read."""

from types import SimpleNamespace

import pytest
import torch

from headwise.attention import transfer
from headwise.maths.slots import exchange, split, take_flat, take_rows
from tests.lanes import AnyOrderLanes, LateLanes

LAYERS, BATCH, GROUPS, WIDTH, BUDGET, START, STEPS = 4, 2, 3, 2, 6, 12, 25
CPU = torch.device("cpu")


def chosen(generator, groups, length):
    """[B, groups, budget] positions, the newest among them."""
    found = torch.empty(BATCH, groups, BUDGET, dtype=torch.int64)
    for row in found.flatten(0, 1):
        row[:-1] = torch.randperm(length - 1, generator=generator)[: BUDGET - 1].sort().values
        row[-1] = length - 1
    return found


def walk(monkeypatch, lanes, seed, groups, ahead=True, skips=True):
    """Steps of all layers; every read of slots is work of the compute lane. Gives what each read found, and the positions moved."""
    monkeypatch.setattr(transfer, "lanes_between", lambda *_: lanes)
    generator = torch.Generator().manual_seed(seed)
    loader, right, moved = transfer.Loader(), [], 0
    stores = torch.full((LAYERS, 2, BATCH, GROUPS, START + STEPS, WIDTH), torch.nan)
    stores[..., :START, :] = torch.randn(stores[..., :START, :].shape, generator=generator)
    for length in range(START + 1, START + STEPS + 1):
        loader.begin()
        positions, moves = chosen(generator, groups, length), []
        for layer in range(LAYERS):
            newest = stores[layer][..., length - 1, :]
            newest.copy_(torch.randn(newest.shape, generator=generator))
            if skips and layer and torch.rand((), generator=generator) < 0.2:
                continue  # this layer reads everything, whatever was sent to it
            keys, values = stores[layer, :, :, :, :length]
            slots, count = loader.load(layer, keys, values, positions, moves, CPU)
            assert torch.equal(slots.held.sort(dim=-1).values, positions)
            moved += count
            wanted = [take_rows(table, slots.held) for table in (keys, values)]

            def read(slots=slots, wanted=wanted):
                right.append(all(torch.equal(a, b) for a, b in zip((slots.keys, slots.values), wanted, strict=True)))

            lanes.compute(read) if lanes else read()
            if ahead and layer == 0:
                for later in range(1, LAYERS):
                    loader.send_ahead(later, *stores[later, :, :, :, : length - 1], positions, moves, length)
        if isinstance(lanes, AnyOrderLanes):
            lanes.run_some(int(torch.randint(12, (), generator=lanes.generator)))
    if isinstance(lanes, AnyOrderLanes):
        lanes.drain()
    return right, moved


@pytest.mark.parametrize("groups", [1, GROUPS], ids=["one choice", "per head"])
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "in turn"])
@pytest.mark.parametrize("seed", range(8))
def test_every_order_of_work_gives_every_layer_its_rows(monkeypatch, seed, ahead, groups):
    lanes = AnyOrderLanes(torch.Generator().manual_seed(seed))
    right, _ = walk(monkeypatch, lanes, seed, groups, ahead)
    assert len(right) > STEPS * LAYERS // 2
    assert all(right)


@pytest.mark.parametrize("broken", ["after", "hold", "finish"])
def test_a_lane_that_ignores_a_rule_is_seen(monkeypatch, broken):
    """`after`: slots overwritten while they are read. `hold`: read before they are filled. `finish`: a buffer filled again while it is copied."""
    found = [walk(monkeypatch, AnyOrderLanes(torch.Generator().manual_seed(seed), broken), seed, GROUPS)[0] for seed in range(4)]
    assert not all(all(right) for right in found)


def test_late_copies_give_the_same_rows_and_counts_as_one_lane(monkeypatch):
    for skips in (False, True):
        one, counted = walk(monkeypatch, None, 5, 1, skips=skips)
        late, moved = walk(monkeypatch, LateLanes(), 5, 1, skips=skips)
        assert all(one)
        assert all(late)
        assert len(one) == len(late)
        if not skips:  # a layer that reads everything after all has been sent rows that may be evicted unread
            assert moved == counted
    assert not all(walk(monkeypatch, LateLanes("hold"), 5, 1)[0])


def test_rows_are_sent_before_the_layer_has_its_turn(monkeypatch):
    lanes = LateLanes()
    monkeypatch.setattr(transfer, "lanes_between", lambda *_: lanes)
    loader, store = transfer.Loader(), torch.randn(2, 1, 1, 9, WIDTH)
    for length in (8, 9):
        loader.begin()
        moves, positions = [], torch.tensor([[[0, length - 2, length - 1]]])
        for layer in (0, 1):
            if length == 9 and layer == 1:
                loader.send_ahead(1, *store[..., :8, :], positions, moves, length)
                assert len(lanes.waiting) == 0  # all that is new is the newest row, and the layer has not made it yet
            loader.load(layer, *store[..., :length, :], positions, moves, CPU)
            assert len(moves) == 1
    loader.begin()
    moves, positions = [], torch.tensor([[[2, 3, 8]]])
    loader.load(0, *store, positions, moves, CPU)
    loader.send_ahead(1, *store, positions, moves, 9)
    assert len(lanes.waiting) == 1
    sent = lanes.sent
    slots, moved = loader.load(1, *store, positions, moves, CPU)
    assert (lanes.sent, moved, slots.begun) == (sent, 2, None)
    assert torch.equal(slots.keys, take_rows(store[0], slots.held))


def test_an_exchange_is_cut_at_what_is_there():
    held, wanted = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 5, 6, 7]]])
    move = exchange(held, wanted, 8)
    first, rest = split(held, move, 7)
    assert first.positions.tolist() == [5, 6]
    assert rest.positions.tolist() == [7]
    assert sorted(first.held.flatten().tolist()) == [-1, 0, 5, 6]
    assert torch.equal(rest.held, move.held)
    assert torch.equal(torch.cat([first.slots, rest.slots]).sort().values, move.slots.sort().values)


def test_rows_by_name_from_any_layout():
    table = torch.randn(2, 3, 9, 4)
    b, g, p = (torch.randint(0, size, (11,)) for size in (2, 3, 9))
    slow = torch.stack([table[i, j, k] for i, j, k in zip(b, g, p, strict=True)])
    for layout in (table, table.transpose(1, 2).contiguous().transpose(1, 2), table.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(take_flat(layout, b, g, p), slow)
        room = torch.empty(11, 4)
        assert take_flat(layout, b, g, p, room) is room
        assert torch.equal(room, slow)


def test_only_from_a_host_to_cuda_are_there_two_lanes(monkeypatch):
    monkeypatch.setattr(transfer, "CudaLanes", lambda device: f"two lanes to {device}")
    cuda = torch.device("cuda", 1)
    assert transfer.lanes_between(CPU, cuda) == "two lanes to cuda:1"
    for source, target in ((CPU, CPU), (cuda, cuda), (cuda, CPU)):
        assert transfer.lanes_between(source, target) is None


def test_what_the_cuda_lanes_ask_of_torch(monkeypatch):
    """With streams that only write down what they are told: the order of waits, work and events."""
    told = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            told.append(f"{self.name} waits for {event.name}")

        def record_event(self):
            told.append(f"{self.name} records")
            return SimpleNamespace(name=f"event of {self.name}", synchronize=lambda: told.append(f"host waits for {self.name}"))

        def __enter__(self):
            told.append(f"on {self.name}")

        def __exit__(self, *_):
            told.append(f"off {self.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("model"))
    lanes = transfer.CudaLanes(torch.device("cuda"))
    slots = SimpleNamespace(record_stream=lambda stream: told.append(f"slots are used on {stream.name}"))
    mark = lanes.copy(lambda: told.append("work"), lanes.now(), [slots])
    lanes.hold(mark)
    lanes.finish(mark)
    lanes.compute(lambda: told.append("work of the model"))
    assert told == [
        "model records", "on copies", "copies waits for event of model", "work", "slots are used on copies", "copies records", "off copies",
        "model waits for event of copies", "host waits for copies", "work of the model",
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *given, **options: asked.append((given, options)))
    lanes.buffer(7, torch.bfloat16)
    assert asked == [((7,), {"dtype": torch.bfloat16, "pin_memory": True})]
