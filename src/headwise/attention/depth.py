"""Running a model only as deep as somebody looks: what lies above the deepest layer of interest is never computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.models.forward import forward


class LayerReachedError(Exception):
    """Raised inside the attention of the last wanted layer; caught by `run_to_layer`."""


@torch.no_grad()
def run_to_layer(model: Any, layer: int, input_ids: Tensor, cache: Any = None) -> None:
    """Run the model over `input_ids` [B, T], appended to `cache` if there is one, up to the attention of `layer`.

    Its keys and values still enter the cache, and its taps still see it.

    There is no output. Layers above stay as they were, also in the cache.
    """
    with attached(model) as plan:
        if layer not in plan.model.modules:
            raise HeadwiseError(f"layer {layer} has no attention to stop at; choose one of {sorted(plan.model.modules)}")
        before, plan.last = plan.last, layer
        try:
            if cache is None:
                model(input_ids=input_ids, use_cache=False)
            else:
                forward(model, input_ids, cache)
        except LayerReachedError:
            pass
        finally:
            plan.last = before
