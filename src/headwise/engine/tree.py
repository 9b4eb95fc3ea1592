"""The tree of common prefixes of a list of prompts: every stretch of text that several prompts share occurs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LEAST_SHARED = 16  # shorter common stretches cost more as a pass of their own than they save


@dataclass
class Node:
    """Text [0, length) that all prompts below it share. `leaves`: prompts that continue alone from here."""

    length: int
    sample: int
    leaves: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def prefix_tree(prompts: Sequence[Sequence[int]], least: int = LEAST_SHARED) -> Node:
    """Arrange prompts; a node never covers the last token of a prompt, so every leaf has a pass of its own."""
    arrays = [np.asarray(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: arrays[i].tolist())
    common = [_common(arrays[a], arrays[b]) for a, b in pairwise(order)]
    return _split(order, common, 0, least)


def cost(node: Node, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that have to be run for all prompts below `node`, the node's own text not included."""
    own = sum(len(prompts[i]) - node.length for i in node.leaves)
    return own + sum(child.length - node.length + cost(child, prompts) for child in node.children)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix, at most one less than either prompt."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return min(int(different[0]) if len(different) else n, len(a) - 1, len(b) - 1)


def _split(order: list[int], common: list[int], length: int, least: int) -> Node:
    """Node for sorted prompts that share [0, length); neighbours that share `least` more tokens form a child."""
    node = Node(length, order[0])
    start = 0
    for i in range(1, len(order) + 1):
        if i < len(order) and common[i - 1] >= length + least:
            continue
        group, shared = order[start:i], common[start : i - 1]
        if len(group) == 1:
            node.leaves.append(group[0])
        else:
            node.children.append(_split(group, shared, min(shared), least))
        start = i
    return node
