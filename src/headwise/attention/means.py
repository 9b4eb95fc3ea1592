"""Calibrated mean outputs of all heads, for ablation mode `mean`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from headwise.attention.plan import Call, attached, device_of
from headwise.heads.errors import HeadwiseError
from headwise.models.model import transformers_model


@torch.no_grad()
def head_means(model: Any, texts: Iterable[Tensor]) -> Tensor:
    """Mean output [L, H, d] float32 of every head over all positions of plain text.

    texts: token ids [B, T] each, without padding. Calibrate on other text than you report on.
    """
    model = transformers_model(model)
    totals: dict[int, Tensor] = {}
    positions = 0

    def add(call: Call) -> None:
        summed = call.output.float().sum(dim=(0, 1))
        totals[call.layer] = totals[call.layer] + summed if call.layer in totals else summed

    with attached(model) as plan:
        plan.taps.append(add)
        try:
            for ids in texts:
                model(input_ids=ids.to(device_of(model)), use_cache=False, logits_to_keep=1)
                positions += ids.numel()
        finally:
            plan.taps.remove(add)
        if not positions:
            raise HeadwiseError("mean ablation needs calibration text; got none")
        empty = torch.zeros(plan.model.heads.shape[1], plan.model.heads.head_dim, device=device_of(model))
        return torch.stack([totals[i] / positions if i in totals else empty for i in range(plan.model.heads.shape[0])])
