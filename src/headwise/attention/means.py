"""Calibrated mean outputs of all heads, for ablation mode `mean`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.models.model import device_of


class _Totals:
    """Look: the sum of all outputs [H, d] float32 by layer."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}

    def look(self, call: Call) -> None:
        summed = call.output.float().sum(dim=(0, 1))
        self.by_layer[call.layer] = self.by_layer[call.layer] + summed if call.layer in self.by_layer else summed


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
    totals, positions = _Totals(), 0
    with attached(model) as plan:
        device, heads = device_of(plan.model.hf), plan.model.heads
        with plan.running(totals):
            for ids in texts:
                plan.model.hf(input_ids=ids.to(device), use_cache=False, logits_to_keep=1)
                positions += ids.numel()
    if not positions:
        raise HeadwiseError("mean ablation needs calibration text; got none")
    empty = torch.zeros(heads.shape[1], heads.head_dim, device=device)
    return torch.stack([(totals.by_layer[i] / positions).to(device) if i in totals.by_layer else empty for i in range(heads.shape[0])])
