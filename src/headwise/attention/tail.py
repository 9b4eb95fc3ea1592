"""The last layer computes its outputs only at positions whose logits are read.

Every layer but the last must run at all positions, because later layers take keys and values from it. The last layer owes the cache
its keys and values, but its attention output, output projection and MLP matter only where logits are read: at a handful of answer
positions behind a long prompt. In a model of eight layers that saves an eighth of a prefill.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headwise.attention.call import Call, Whole
from headwise.attention.plan import attached


@dataclass(frozen=True)
class LastRows:
    """Attends for the newest rows of one layer only; the others get zeros.

    Attributes:
        layer: Decoder layer; the last one, since later layers would miss the keys of the zeros.
        rows: How many, at least 1.
    """

    layer: int
    rows: int

    def attend(self, call: Call) -> Tensor | None:
        """None for other layers, short passes, and compressed caches, which attend for all rows at once."""
        total = call.query.shape[2]
        if call.layer != self.layer or self.rows >= total or not isinstance(call.source, Whole):
            return None
        rows = call.query[:, :, -self.rows :]
        return padded(call.source.attend(rows, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks), total)


@contextmanager
def last_rows(model: Any, rows: int) -> Iterator[None]:
    """Inside the block only the newest `rows` positions of a pass get a meaningful hidden state from the last layer.

    Keys, values, queries (and so row statistics) and the logits of those rows stay as they are; other rows hold arbitrary finite numbers.
    Without effect where the last layer is no softmax attention.

    Args:
        model: A `Model`, or a transformers model.
        rows: How many, at least 1.
    """
    with attached(model) as plan:
        last = plan.model.heads.shape[0] - 1
        if last not in plan.model.modules:
            yield
            return
        parts = (plan.model.part("output", last), plan.model.part("mlp", last))
        handles = [handle for part in parts for handle in _on_rows(part, rows)]
        try:
            with plan.running(LastRows(last, rows)):
                yield
        finally:
            for handle in handles:
                handle.remove()


def _on_rows(part: nn.Module, rows: int) -> list[Any]:
    """Run a position-wise module on the last rows only; the others become zeros."""
    length = 0

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal length
        length = inputs[0].shape[1]
        return (inputs[0][:, -rows:].contiguous(), *inputs[1:])  # some modules `view` their input

    def fill(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (padded(output[0], length), *output[1:])
        return padded(output, length)

    return [part.register_forward_pre_hook(cut), part.register_forward_hook(fill)]


def padded(output: Tensor, length: int) -> Tensor:
    """Rows put back in their places, with zeros in front.

    Args:
        output: [B, n, ...], the last n positions.
        length: Positions in all, at least n.

    Returns:
        [B, length, ...]; the same tensor if none is missing.
    """
    missing = length - output.shape[1]
    if not missing:
        return output
    whole = output.new_zeros(output.shape[0], length, *output.shape[2:])
    whole[:, missing:] = output
    return whole
