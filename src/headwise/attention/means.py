"""Outputs of all heads in plain text: their means and single ones (ablation modes `mean` and `resample`), and how large they are (for controls)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.call import Call, Looks
from headwise.attention.plan import Plan, attached
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model, device_of


class _Totals:
    """Look: the sum of all outputs [H, d] float32 by layer."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}

    def look(self, call: Call) -> None:
        summed = call.output.float().sum(dim=(0, 1))
        self.by_layer[call.layer] = self.by_layer[call.layer] + summed if call.layer in self.by_layer else summed


class _Norms:
    """Look: the sum of the norms of what each head adds to the residual stream, [H] by layer."""

    def __init__(self, gram: Callable[[int], Tensor]) -> None:
        self._gram = gram
        self.by_layer: dict[int, Tensor] = {}

    def look(self, call: Call) -> None:
        output = call.output.float()
        squared = torch.einsum("bthi,hij,bthj->bth", output, self._gram(call.layer), output)
        summed = squared.clamp(min=0).sqrt().sum(dim=(0, 1))
        self.by_layer[call.layer] = self.by_layer[call.layer] + summed if call.layer in self.by_layer else summed


class _Picked:
    """Look: outputs [n, H, d] float32 by layer, at the places [n, 2] (row, position) that are wanted of this pass."""

    def __init__(self) -> None:
        self.places = torch.empty(0, 2, dtype=torch.int64)
        self.by_layer: dict[int, list[Tensor]] = {}

    def look(self, call: Call) -> None:
        rows, columns = self.places.unbind(dim=1)
        self.by_layer.setdefault(call.layer, []).append(call.output[rows, columns].float().cpu())


@torch.no_grad()
def head_samples(model: Any, texts: Iterable[Tensor], count: int = 256, seed: int = 0) -> Tensor:
    """Outputs of every head at random positions of plain text, all heads at the same ones.

    A head that is ablated by such a sample (resampling ablation) still says something that it says in other text, where a mean may be a vector that
    it never gives.

    Args:
        model: A `Model`, or a transformers model.
        texts: Token ids [B, T] each, without padding. Their first positions are left out: outputs there are those of a start token.
        count: How many positions are drawn, without replacement; all of them if the texts have fewer.
        seed: Of the draw.

    Returns:
        [N, L, H, d] float32 on the model's device; 0 for layers without softmax attention.

    Raises:
        HeadwiseError: There is no text, or `count` is below 1.
    """
    given = [ids for ids in texts if ids.shape[1] > 1]
    if not given or count < 1:
        raise HeadwiseError("resampling needs text of at least two tokens and a count of at least 1")
    every = torch.cat(
        [
            torch.cartesian_prod(torch.tensor([i]), torch.arange(len(ids)), torch.arange(1, ids.shape[1]))
            for i, ids in enumerate(given)
        ]
    )
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
    wanted, picked = every[order], _Picked()
    with attached(model) as plan:
        device, heads = device_of(plan.model.hf), plan.model.heads
        with plan.running(picked):
            for i, ids in enumerate(given):
                picked.places = wanted[wanted[:, 0] == i, 1:]
                if len(picked.places):
                    plan.model.hf(input_ids=ids.to(device), use_cache=False, logits_to_keep=1)
    back = torch.argsort(torch.argsort(wanted[:, 0], stable=True))  # from the order of the texts to that of the draw
    empty = torch.zeros(len(wanted), heads.shape[1], heads.head_dim)
    layers = [torch.cat(picked.by_layer[i])[back] if i in picked.by_layer else empty for i in range(heads.shape[0])]
    return torch.stack(layers, dim=1).to(device)


@torch.no_grad()
def head_means(model: Any, texts: Iterable[Tensor]) -> Tensor:
    """Mean output of every head over all positions of plain text.

    Args:
        model: A `Model`, or a transformers model.
        texts: Token ids [B, T] each, without padding. Calibrate on other text than you report on.

    Returns:
        [L, H, d] float32; 0 for layers without softmax attention.

    Raises:
        HeadwiseError: There is no text.
    """
    totals = _Totals()
    with attached(model) as plan:
        device, heads = device_of(plan.model.hf), plan.model.heads
        positions = _read(plan, totals, texts)
    empty = torch.zeros(heads.shape[1], heads.head_dim, device=device)
    return torch.stack(
        [(totals.by_layer[i] / positions).to(device) if i in totals.by_layer else empty for i in range(heads.shape[0])]
    )


@torch.no_grad()
def head_norms(model: Any, texts: Iterable[Tensor]) -> NDArray[np.float64]:
    """How much each head adds to the residual stream: the mean norm of its output behind the output projection.

    Args:
        model: A `Model`, or a transformers model.
        texts: Token ids [B, T] each, without padding.

    Returns:
        [L, H], at least 0; NaN for layers without softmax attention. Biases of the projection belong to no head and do not count.

    Raises:
        HeadwiseError: There is no text, the weights of the output projection are packed, or a gate stands in front of it.
    """
    with attached(model) as plan:
        if plan.model.family.query == "gated":
            raise HeadwiseError(
                f"output norms of {plan.model.name} would miss the gate between attention and its projection; not supported"
            )
        grams: dict[int, Tensor] = {}

        def gram(layer: int) -> Tensor:
            if layer not in grams:
                grams[layer] = _gram(plan.model, layer)
            return grams[layer]

        norms = _Norms(gram)
        positions = _read(plan, norms, texts)
        found = np.full(plan.model.heads.shape, np.nan)
    for layer, summed in norms.by_layer.items():
        found[layer] = (summed / positions).double().cpu().numpy()
    return found


def _gram(model: Model, layer: int) -> Tensor:
    """[H, d, d] float32: W^T W of each head's columns of the output projection, so that the squared norm of W z is z^T (W^T W) z."""
    weight = cast(Tensor, model.part("output", layer).weight)
    if not weight.is_floating_point():
        raise HeadwiseError(
            f"layer {layer}: the output projection is packed ({weight.dtype}); load the model without quantization"
        )
    rows = (weight if model.family.query == "conv" else weight.T).float()  # [H * d, width]; GPT-2 keeps its weights transposed
    heads = rows.reshape(model.heads.shape[1], model.heads.head_dim, -1)
    return heads @ heads.transpose(1, 2)


def _read(plan: Plan, look: Looks, texts: Iterable[Tensor]) -> int:
    """Read texts with `look` in the plan; the number of their tokens."""
    device, positions = device_of(plan.model.hf), 0
    with plan.running(look):
        for ids in texts:
            plan.model.hf(input_ids=ids.to(device), use_cache=False, logits_to_keep=1)
            positions += ids.numel()
    if not positions:
        raise HeadwiseError("mean outputs of heads need calibration text; got none")
    return positions
