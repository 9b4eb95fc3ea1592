"""The shared-prefix runner: every stretch of text that several prompts begin with is run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.plan import attached, device_of
from headwise.attention.tail import last_rows
from headwise.caches.shared import cut_back, fork, full_cache
from headwise.models.forward import forward
from headwise.models.rope import set_length, table_of
from headwise.runtime.sharing import branch_points, sharing_order


@dataclass
class Leaf:
    """One prompt, ready for its own pass: ids = what `past` holds + `rest`.

    The receiver may append to `past`: the prompt's own `rest` first, then what it likes. It must not change what is in there, and
    must be done with it when it asks for the next leaf.
    """

    index: int
    ids: tuple[int, ...]
    past: DynamicCache

    @property
    def rest(self) -> tuple[int, ...]:
        """Tokens that `past` does not hold yet."""
        return self.ids[self.past.get_seq_length() :]


def leaves(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Leaf]:
    """Yield every prompt once, in the order that shares most text. Run inside `attached` (or any attach block)."""
    with attached(model) as plan:
        hybrid = plan.model.is_hybrid
    if len({table_of(model, len(prompt)) for prompt in prompts}) > 1:  # rotated by their lengths: nothing can be shared
        yield from (Leaf(i, tuple(prompt), full_cache(model)) for i, prompt in enumerate(prompts))
        return
    yield from (_from_snapshots if hybrid else _by_cutting_back)(model, prompts)


def prefill(model: Any, cache: DynamicCache, ids: Sequence[int]) -> None:
    """Append tokens to a cache."""
    if ids:
        with torch.no_grad(), last_rows(model, 1):
            forward(model, token_tensor(model, ids), cache, logits_to_keep=1)


def token_tensor(model: Any, ids: Sequence[int], rows: int = 1) -> Tensor:
    """[rows, T] int64 on the model's device, the same ids in each row."""
    return torch.tensor([list(ids)], dtype=torch.int64, device=device_of(model)).expand(rows, -1)


def _by_cutting_back(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Leaf]:
    """One cache serves all: it is cut back to what the next prompt shares with the one that has just filled it."""
    cache, before = full_cache(model), 0
    set_length(cache, max(map(len, prompts), default=None))
    for index, shared in sharing_order(prompts):
        usable = min(shared, before, cache.get_seq_length())
        cut_back(cache, cache.get_seq_length() - usable)
        yield Leaf(index, tuple(prompts[index]), cache)
        before = len(prompts[index])


def _from_snapshots(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Leaf]:
    """Recurrent states cannot be cut back, so a copy is kept wherever a later prompt will branch off."""
    order = sharing_order(prompts)
    snapshots = [full_cache(model)]
    set_length(snapshots[0], max(map(len, prompts), default=None))
    for place, (index, shared) in enumerate(order):
        while snapshots[-1].get_seq_length() > shared:
            snapshots.pop()
        cache = fork(snapshots[-1])
        for length in branch_points([n for _, n in order[place + 1 :]], cache.get_seq_length()):
            prefill(model, cache, prompts[index][cache.get_seq_length() : length])
            snapshots.append(fork(cache))
        yield Leaf(index, tuple(prompts[index]), cache)
