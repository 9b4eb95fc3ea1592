"""The shared-prefix runner: every stretch of text that several prompts begin with is run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from headwise.attention.plan import attached
from headwise.attention.tail import last_rows
from headwise.caches.shared import cut_back, fork, full_cache
from headwise.models.forward import forward, set_length, table_of, token_tensor

MIN_SHARED = 16  # a shorter stretch costs more as a pass of its own than it saves


@dataclass
class Leaf:
    """One prompt, ready for its own pass: ids = what `past` holds + `rest`.

    The receiver may append to `past`: the prompt's own `rest` first, then what it likes. It must not change what is in there, and
    must be done with it when it asks for the next leaf.

    Attributes:
        index: Place of the prompt in the list that `leaves` was given.
        ids: The whole prompt.
        past: One row that holds the first tokens of it, never all.
    """

    index: int
    ids: tuple[int, ...]
    past: DynamicCache

    @property
    def rest(self) -> tuple[int, ...]:
        """Tokens that `past` does not hold yet."""
        return self.ids[self.past.get_seq_length() :]


def leaves(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Leaf]:
    """Every prompt once, every stretch of text that they share read once. Run inside `attached` (or any attach block).

    Args:
        model: A transformers model.
        prompts: Token ids, at least one each.

    Yields:
        In the order that shares most text, which need not be the given one. The caller runs `rest` itself; the next leaf builds on what it left.
    """
    with attached(model) as plan:
        hybrid = plan.model.is_hybrid
    if len({table_of(model, len(prompt)) for prompt in prompts}) > 1:  # rotated by their lengths: nothing can be shared
        yield from (Leaf(i, tuple(prompt), full_cache(model)) for i, prompt in enumerate(prompts))
        return
    yield from (_from_snapshots if hybrid else _by_cutting_back)(model, prompts)


def prefill(model: Any, cache: DynamicCache, ids: Sequence[int]) -> None:
    """Append tokens to a cache, without gradients and logits.

    Args:
        model: A transformers model.
        cache: One row; it grows.
        ids: The tokens; none changes nothing.
    """
    if ids:
        with torch.no_grad(), last_rows(model, 1):
            forward(model, token_tensor(model, ids), cache, logits_to_keep=1)


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


def sharing_order(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(index, shared) for every prompt: it continues the first `shared` tokens of the prompt before it in this order.

    Sorting puts the best partner of a prompt right in front of it, so running len - shared tokens of each prompt runs every distinct
    stretch of text once. At least one token of every prompt is left to run.
    """
    arrays = [np.asarray(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: arrays[i].tolist())
    shared = [0, *(min(common(arrays[a], arrays[b]), len(arrays[a]) - 1, len(arrays[b]) - 1) for a, b in pairwise(order))]
    return list(zip(order, shared, strict=True))


def branch_points(shared: Sequence[int], start: int, least: int = MIN_SHARED) -> list[int]:
    """Lengths at which later prompts leave the present one: where a recurrent state is worth a copy.

    Args:
        shared: The second entries of `sharing_order` for the prompts after the present one.
        start: What is in the cache already.
        least: Shortest stretch between two of them, in tokens.

    Returns:
        Above `start`, ascending, at least `least` apart.
    """
    lowest: list[int] = []
    for length in shared:
        if not lowest or length < lowest[-1]:
            lowest.append(length)
        if length < start + least:
            break
    points: list[int] = []
    for length in reversed(lowest):
        if length >= (points[-1] if points else start) + least:
            points.append(length)
    return points


def common(a: Sequence[int] | NDArray[np.int64], b: Sequence[int] | NDArray[np.int64]) -> int:
    """How many tokens two texts begin with alike."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n
