"""The shared-prefix runner: prefill every shared stretch of text once, hand out each prompt's rest with its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attach.caches import fork, full_cache
from headwise.attach.plan import device_of
from headwise.engine.tree import Node, cost, prefix_tree

Advance = Callable[[int], None]


@dataclass
class Leaf:
    """One prompt, ready for its own pass: `past` holds the tokens before `rest`; both belong to the receiver."""

    index: int
    past: DynamicCache
    rest: tuple[int, ...]


def leaves(model: Any, prompts: Sequence[Sequence[int]], advance: Advance | None = None) -> Iterator[Leaf]:
    """Yield every prompt once, in the order that keeps fewest caches alive. Run inside `attached` (or any attach block).

    advance: called with the number of tokens just prefilled or handed out, for progress bars; see `total_cost`.
    """
    yield from _walk(model, prefix_tree(prompts), prompts, full_cache(model), advance or (lambda _: None))


def total_cost(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that `leaves` and its receiver will run."""
    tree = prefix_tree(prompts)
    return tree.length + cost(tree, prompts)


def prefill(model: Any, cache: DynamicCache, ids: Sequence[int]) -> None:
    """Append tokens to a cache."""
    if ids:
        with torch.no_grad():
            model(input_ids=token_tensor(model, ids), past_key_values=cache, use_cache=True, logits_to_keep=1)


def token_tensor(model: Any, ids: Sequence[int], rows: int = 1) -> Tensor:
    """[rows, T] int64 on the model's device, the same ids in each row."""
    return torch.tensor([list(ids)], dtype=torch.int64, device=device_of(model)).expand(rows, -1)


def _walk(model: Any, node: Node, prompts: Sequence[Sequence[int]], cache: DynamicCache, advance: Advance) -> Iterator[Leaf]:
    done = cache.get_seq_length()
    if node.length > done:
        prefill(model, cache, prompts[node.sample][done : node.length])
        advance(node.length - done)
    for index in node.leaves:
        rest = tuple(prompts[index][node.length :])
        yield Leaf(index, fork(cache), rest)
        advance(len(rest))
    for i, child in enumerate(node.children):
        # The last child may take the cache over; nobody needs it afterwards.
        yield from _walk(model, child, prompts, cache if i + 1 == len(node.children) else fork(cache), advance)
