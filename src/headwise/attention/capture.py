"""Capturing queries and keys as attention uses them, for losses on them and for other measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached


class Captured(NamedTuple):
    """One layer of the latest pass, after position encoding and query and key norms; with gradients unless they are switched off.

    Attributes:
        query: [B, H, T, d].
        keys: Segments [B or 1, G, S_i, d], older positions first.
        scaling: Factor of query times key.
        output: [B, T, H, d] of all heads, in front of the output projection.
    """

    query: Tensor
    keys: tuple[Tensor, ...]
    scaling: float
    output: Tensor


class Capture:
    """Look: layer -> what it used in the latest pass. Tensors are kept as they are, so a long text costs its keys and outputs of all layers."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Captured] = {}

    def look(self, call: Call) -> None:
        """Keep one layer."""
        self.by_layer[call.layer] = Captured(call.query, call.keys, call.scaling, call.output)


@contextmanager
def capture(model: Any) -> Iterator[Capture]:
    """Inside the block the queries, keys and outputs of every pass can be read from the yielded object.

    With gradient checkpointing use the non-reentrant form: the other one cuts these tensors off from the loss.

    Args:
        model: A `Model`, or a transformers model.

    Raises:
        HeadwiseError: In a pass over a compressed cache, which does not hold all keys.
    """
    captured = Capture()
    with attached(model) as plan, plan.running(captured):
        yield captured
