"""Silencing and scaling heads in the weights themselves: what needs no code at run time.

`zero`: the columns of the output projection that read the head. `uniform`: the rows that make the head's query (with their
bias), so that all its logits are 0. Scaling: the columns of `zero`, times a factor. All are exact, so the model can be saved as a plain
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, Heads
from headwise.models.adapters import adapted_parts
from headwise.models.model import Model, as_model
from headwise.models.projections import query_rows
from headwise.models.quantized import packing_of

WEIGHT_MODES = ("zero", "uniform")


@torch.no_grad()
def silence_in_weights(hf: nn.Module, heads: Heads, mode: Literal["zero", "uniform"] | str) -> None:
    """Overwrite the weights of `heads` so that the plain model behaves as the ablated one (scope `all`).

    Args:
        hf: A transformers model; changed in place.
        heads: The heads to silence.
        mode: `zero` (no output) or `uniform` (no query).

    Raises:
        HeadwiseError: Another mode, heads of another model, or weights that cannot be edited: packed, offloaded, under an adapter.
    """
    if mode not in WEIGHT_MODES:
        raise HeadwiseError(f"only {' and '.join(WEIGHT_MODES)} can be written into weights; got {mode!r}")
    model = as_model(hf)
    chosen = model.check(heads)
    check_editable(model)
    for head in chosen:
        for part in _output_columns(model, head) if mode == "zero" else _query_rows(model, head):
            part.zero_()


@torch.no_grad()
def scale_in_weights(hf: nn.Module, factors: Mapping[HeadId, float]) -> None:
    """Multiply the columns of the output projection that read each head, so that the plain model behaves as one with scaled heads.

    Args:
        hf: A transformers model; changed in place.
        factors: Of each head; those that are not named stay as they are. A gate behind attention does not matter: it multiplies, too.

    Raises:
        HeadwiseError: Heads of another model, or weights that cannot be edited: packed, offloaded, under an adapter.
    """
    model = as_model(hf)
    chosen = model.check(list(factors))
    check_editable(model)
    for head in chosen:
        for part in _output_columns(model, head):
            part.mul_(factors[head])


def check_unpacked(model: Model) -> None:
    """Raise if the model's weights are packed, so that they cannot be edited."""
    packing = packing_of(model.hf)
    if packing is not None:
        raise HeadwiseError(
            f"the weights of {model.name} are packed ({packing}), and cannot be edited; load the model without quantization"
        )


def check_editable(model: Model) -> None:
    """Raise if the weights of attention cannot be edited: packed, offloaded, or under an adapter."""
    check_unpacked(model)
    adapted = adapted_parts(model.hf)
    if adapted:
        raise HeadwiseError(
            f"{adapted[0]} has an adapter, which would go on acting; merge it into the weights first (merge_and_unload)"
        )
    for layer, module in model.modules.items():
        for name, parameter in module.named_parameters():
            if parameter.is_meta:
                raise HeadwiseError(
                    f"layer {layer}: {name} is not in memory (offloaded); load the model without offloading to edit weights"
                )
            if not parameter.is_floating_point() or parameter.element_size() < 2 or hasattr(parameter, "__tensor_flatten__"):
                raise HeadwiseError(
                    f"layer {layer}: {name} is packed ({parameter.dtype}); load the model without quantization to edit weights"
                )


def _output_columns(model: Model, head: HeadId) -> Iterator[Tensor]:
    projection: Any = model.part("output", head.layer)
    span = slice(head.head * model.heads.head_dim, (head.head + 1) * model.heads.head_dim)
    yield projection.weight[span] if model.family.query == "conv" else projection.weight[:, span]


def _query_rows(model: Model, head: HeadId) -> Iterator[Tensor]:
    module: Any = model.modules[head.layer]
    name, start, count = query_rows(model, head)
    projection = getattr(module, name)
    match model.family.query:
        case "conv":
            yield projection.weight[:, start : start + count]
            yield projection.bias[start : start + count]
        case "normed":
            yield module.q_norm.weight[start : start + count]
        case _:
            yield from _rows(projection, start, count)


def _rows(projection: Any, start: int, count: int) -> Iterator[Tensor]:
    yield projection.weight[start : start + count]
    if projection.bias is not None:
        yield projection.bias[start : start + count]
