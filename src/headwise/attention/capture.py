"""Capturing queries and keys as attention uses them, for losses on them and for other measures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
    """Look: layer -> what it used in the latest pass. Tensors are kept as they are, so a long text costs its keys and outputs of these layers.

    Args:
        layers: Those to keep; None: all.
    """

    def __init__(self, layers: Collection[int] | None = None) -> None:
        self.by_layer: dict[int, Captured] = {}
        self._layers = layers

    def look(self, call: Call) -> None:
        """Keep one layer."""
        if self._layers is None or call.layer in self._layers:
            self.by_layer[call.layer] = Captured(call.query, call.keys, call.scaling, call.output)


@contextmanager
def capture(model: Any, layers: Collection[int] | None = None) -> Iterator[Capture]:
    """Inside the block the queries, keys and outputs of every pass can be read from the yielded object.

    With gradient checkpointing use the non-reentrant form: the other one cuts these tensors off from the loss.

    Args:
        model: A `Model`, or a transformers model.
        layers: Those that are kept; None: all.

    Raises:
        HeadwiseError: In a pass over a compressed cache, which does not hold all keys.
    """
    captured = Capture(layers)
    with attached(model) as plan, plan.running(captured):
        yield captured
