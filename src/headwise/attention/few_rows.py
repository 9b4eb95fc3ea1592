"""Linear layers that read their weights once for a few rows.

A linear layer given two rows should cost what it costs for one: nearly all of it is reading the weights. On CPUs the product x W^T that torch
asks for reads them once per row all the same (measured: two rows take twice the time of one, float32, MKL); (W x^T)^T, which is the same product,
does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headwise.models.model import transformers_model

MOST = 4  # rows; where there are more, the product as torch asks for it has caught up
LEAST = 2**16  # weights; a smaller layer costs less than asking how many rows it has


@contextmanager
def few_rows(model: Any) -> Iterator[None]:
    """Inside the block passes of 2 to 4 rows in all run faster on a CPU, without gradients; their results differ by rounding alone.

    Only plain float32 linear layers on a CPU take part: packed weights and adapters run as they are.

    Args:
        model: A `Model`, or a transformers model.

    Yields:
        Nothing; after the block the model is what it was.
    """
    parts = [part for part in transformers_model(model).modules() if type(part) is nn.Linear and _takes_part(part.weight)]
    handles = [handle for part in parts for handle in _hooked(part)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _takes_part(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST


def _hooked(part: nn.Linear) -> list[Any]:
    """The layer itself is given no rows; what it should have said is put in the place of its empty output."""
    held: list[Tensor] = []

    def empty(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        held.clear()
        if not inputs or torch.is_grad_enabled() or not 1 < inputs[0].numel() // part.in_features <= MOST:
            return None
        held.append(inputs[0])
        return (inputs[0][:0],)

    def fill(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        if not held:
            return output
        rows = held.pop()
        found = (part.weight @ rows.flatten(0, -2).T).T
        if part.bias is not None:
            found = found + part.bias
        return found.reshape(*rows.shape[:-1], part.out_features).contiguous()  # some modules `view` what they are given

    return [part.register_forward_pre_hook(empty), part.register_forward_hook(fill)]
