"""Groups of a compressed cache under any sequence of blocks: windows hold sinks and last positions, growing groups everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.caches.groups import EMPTY, Arrival, Growing, Sliding, Window

many = settings(max_examples=150)
blocks = st.lists(st.integers(1, 12), min_size=1, max_size=12)
windows = st.builds(Window, st.integers(0, 5), st.integers(1, 9))


def values_at(positions):
    """[1, 1, T, 1] whose numbers are the positions, so that a wrong place is seen."""
    return torch.tensor(positions, dtype=torch.float32)[None, None, :, None]


def growing(start=0):
    positions = torch.arange(start, dtype=torch.int32)[None, None]
    return Growing(
        None, values_at(range(start)).reshape(1, 1, start, 1), values_at(range(start)).reshape(1, 1, start, 1), positions, start
    )


def feed(group, sizes, start=0):
    for size in sizes:
        new = values_at(range(start, start + size))
        yield start, size, group.take(new, -new, Arrival(start, size))
        start += size


def held(group):
    """Position -> (key, value) of every used place."""
    keys, values = group.keys[0, 0, : group.used, 0].tolist(), group.values[0, 0, : group.used, 0].tolist()
    positions = group.positions[0, 0, : group.used].tolist()
    assert len(set(positions)) == len(positions)
    return dict(zip(positions, zip(keys, values, strict=True), strict=True))


def expected(window, stop):
    return {i for i in range(stop) if i < window.sinks or i >= stop - window.recent}


@given(windows, blocks, st.booleans())
@many
def test_a_window_holds_exactly_its_sinks_and_last_positions(window, sizes, exact):
    like = values_at([0])
    group = Sliding.empty(None, like, like, window, exact)
    for start, size, _ in feed(group, sizes):
        found = held(group)
        assert set(found) == expected(window, start + size)
        assert all(own == (at, -at) for at, own in found.items())
        assert group.keys.shape[2] == window.size


@given(windows, blocks, st.booleans())
@many
def test_what_tokens_of_a_window_see(window, sizes, exact):
    like = values_at([0])
    group = Sliding.empty(None, like, like, window, exact)
    for start, size, part in feed(group, sizes):
        keys = part.keys[0, 0, :, 0].int().tolist()
        for row in range(size):
            asking = start + row
            if part.window is not None:
                continue  # a whole text: attention makes the mask itself (test_kept_cache)
            if part.mask is None:  # all that is held, and the new ones causally
                seen = keys if size == 1 else keys[: len(keys) - size + row + 1]
            else:
                seen = [key for key, visible in zip(keys, part.mask[0, 0, row].tolist(), strict=True) if visible]
            before = expected(window, start)
            loose = before | set(range(start, asking + 1))  # all that was held when its block came
            own = expected(window, asking + 1)
            assert set(seen) == (own if exact or size == 1 else loose)
            assert len(seen) == len(set(seen))


@given(st.integers(0, 9), blocks)
@many
def test_a_growing_group_holds_everything(start, sizes):
    group = growing(start)
    group.values = -group.values
    for at, size, part in feed(group, sizes, start):
        assert held(group) == {i: (i, -i) for i in range(at + size)}
        assert part.mask is None
        assert part.keys[0, 0, :, 0].tolist() == list(range(at + size))


@given(st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=10))
@many
def test_a_growing_group_gives_back_what_is_dropped(start, steps):
    group = growing(start)
    length = start
    for drop, size in steps:
        if drop and size <= length - start:
            group.drop(size)
            length -= size
        else:
            new = values_at(range(length, length + size))
            group.take(new, new, Arrival(length, size))
            length += size
        assert sorted(held(group)) == list(range(length))


@pytest.mark.slow
@given(st.sampled_from(["growing", "sliding"]), windows, blocks, blocks, blocks)
@many
def test_forks_do_not_see_one_another(kind, window, before, one, other):
    like = values_at([0])
    group = growing() if kind == "growing" else Sliding.empty(None, like, like, window, False)
    start = sum(size for _, size, _ in feed(group, before))
    fork = group.fork()
    wanted = held(group)
    list(feed(fork, one, start))
    assert held(group) == wanted
    grown = held(fork)
    list(feed(group, other, start))
    assert held(fork) == grown
    stop = start + sum(other)
    assert set(held(group)) == (set(range(stop)) if kind == "growing" else expected(window, stop))


@pytest.mark.slow
@given(windows, st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=8))
@many
def test_rows_with_padding_hold_what_they_would_alone(window, blocks):
    """Two rows: one has padding in front of each block's tokens, the other none."""
    like = torch.zeros(2, 1, 1, 1)
    group = Sliding.empty(None, like, like, window, False)
    counts = [0, 0]
    for pads, real in blocks:
        size = pads + real
        rows = torch.tensor([[EMPTY] * pads + list(range(counts[0], counts[0] + real)), list(range(counts[1], counts[1] + size))])
        new = rows[:, None, :, None].float()
        group.take(new, new, Arrival(0, size, rows.int()))
        counts = [counts[0] + real, counts[1] + size]
        for row in range(2):
            positions = group.positions[row, 0, : group.used]
            found = positions[positions != EMPTY].tolist()
            assert sorted(found) == sorted(expected(window, counts[row]))
            places = (positions != EMPTY).nonzero().flatten()
            assert group.keys[row, 0, places, 0].tolist() == positions[places].float().tolist()
