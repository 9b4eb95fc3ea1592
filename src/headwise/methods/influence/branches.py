"""Two branches of one text: the model as it is, and the model without some heads.

Below the first layer that loses a head both are the same, so these layers run once; from there on the branches are the two halves of a
doubled batch. Base and changed losses so come from the same batch shapes and kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention import ablate
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet

Run = Callable[[Tensor], Tensor]


def first_changed_layer(heads: HeadSet) -> int:
    """The lowest layer with a chosen head. Raises `HeadwiseError` if none is chosen."""
    if not len(heads):
        raise HeadwiseError("no head to leave out; choose at least one")
    return min(head.layer for head in heads)


@contextmanager
def branches(model: Any, heads: HeadSet, mode: str = "uniform", means: Tensor | None = None) -> Iterator[Run]:
    """Yield run(ids [B, T]) -> final hidden states [2, B, T, width], after the final norm: [0] of the model, [1] without `heads`.

    mode, means: see `ablate`; the scope is `all`. Texts start at position 0 and may be padded on the right: no token looks ahead, so no mask
    is needed, and hidden states of the padding mean nothing. No logits and no cache are made. Raises as `ablate`, and for an empty set of heads.
    """
    first = first_changed_layer(heads)
    nothing, rows = HeadSet((), heads.shape), 0

    @torch.no_grad()
    def run(ids: Tensor) -> Tensor:
        nonlocal rows
        rows = len(ids)
        try:
            with ablate(model, [nothing] * rows + [heads] * rows, mode, means=means):
                hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            rows = 0
        return hidden.view(2, len(ids), *hidden.shape[1:])

    def double(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # In front of the first changed layer this doubles the hidden states, too; above it they come with twice the rows already.
        return _twice(inputs, rows), _twice(options, rows)

    with attached(model) as plan:
        with ablate(model, heads, mode, means=means):  # refuses what cannot be ablated before any work is done
            pass
        layers = list(plan.model.layers)[first:]
        handles = [layer.register_forward_pre_hook(double, with_kwargs=True) for layer in layers]
        try:
            yield run
        finally:
            for handle in handles:
                handle.remove()


def _twice(value: Any, rows: int) -> Any:
    """Tensors [rows, ...] with every entry twice, [2 * rows, ...]; everything else as it is. Goes into tuples and dictionaries."""
    if isinstance(value, tuple):
        return tuple(_twice(part, rows) for part in value)
    if isinstance(value, dict):
        return {name: _twice(part, rows) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return torch.cat([value, value])
    return value
