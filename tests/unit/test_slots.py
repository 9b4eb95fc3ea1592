"""Exchange of slots and rows taken by position, against slow loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.maths.select import best_pages
from headwise.maths.slots import exchange, overlap, take_rows


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_slots_hold_what_is_wanted_with_the_fewest_moves(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, groups, budget, length = 2, 3, 5, 12
    held = torch.full((batch, groups, budget), -1)
    for _ in range(6):
        counts = torch.randint(1, budget + 1, (batch, groups), generator=generator)
        wanted = torch.full_like(held, -1)
        for b in range(batch):
            for g in range(groups):
                own = torch.randperm(length, generator=generator)[: int(counts[b, g])]
                wanted[b, g, budget - len(own) :] = own.sort().values
        move = exchange(held, wanted, length)
        missing = sum(
            len(set(wanted[b, g].tolist()) - set(held[b, g].tolist()) - {-1}) for b in range(batch) for g in range(groups)
        )
        assert len(move.slots) == len(move.positions) == missing
        for b in range(batch):
            for g in range(groups):
                assert sorted(set(move.held[b, g].tolist()) - {-1}) == sorted(set(wanted[b, g].tolist()) - {-1})
                stay = [i for i in range(budget) if held[b, g, i] >= 0 and held[b, g, i] in wanted[b, g]]
                assert all(move.held[b, g, i] == held[b, g, i] for i in stay)
        held = move.held


def test_rows_are_taken_from_any_layout() -> None:
    table = torch.randn(2, 3, 9, 4)
    positions = torch.randint(0, 9, (2, 3, 5))
    slow = torch.stack([torch.stack([table[b, g, positions[b, g]] for g in range(3)]) for b in range(2)])
    roomy = torch.zeros(2, 3, 20, 4)
    roomy[:, :, :9] = table
    transposed = table.transpose(1, 2).contiguous().transpose(1, 2)
    for layout in (table, roomy[:, :, :9], transposed, table.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(take_rows(layout, positions), slow)
    assert torch.equal(take_rows(table, positions[:, :1]), take_rows(table, positions[:, :1].expand(2, 3, 5)))


def test_overlap_counts_what_was_there_before() -> None:
    before, now = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[-1, 2, 3]]])
    assert overlap(before, now, 5).tolist() == [[0.5]]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 6), st.integers(0, 30), st.integers(1, 40), st.integers(0, 1000))
def test_pages_fill_the_budget_without_doubles(page: int, sinks: int, recent: int, more: int, longer: int, seed: int) -> None:
    first = -(-sinks // page) * page
    budget = max(sinks + recent + 1, first + recent) + more
    length = budget + longer
    scores = torch.rand(2, 3, length // page, generator=torch.Generator().manual_seed(seed))
    found = best_pages(scores, page, length, budget, sinks, recent)
    assert found.shape == (2, 3, budget)
    for row, own in zip(found.flatten(0, 1).tolist(), scores.flatten(0, 1).tolist(), strict=True):
        assert row == sorted(set(row))
        assert set(range(sinks)) <= set(row)
        assert set(range(length - recent, length)) <= set(row)
        whole = [p for p in range(len(own)) if set(range(p * page, (p + 1) * page)) <= set(row)]
        newest = next(i for i in range(length, 0, -1) if i - 1 not in row)
        middle = [p for p in range(len(own)) if p * page >= first and (p + 1) * page <= newest]
        chosen = [p for p in whole if p in middle]
        left = [p for p in middle if p not in whole]
        assert not chosen or not left or min(own[p] for p in chosen) >= max(own[p] for p in left)
