"""Running a model only up to the deepest layer that is observed; the layers above it are never computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.models.forward import forward


class LayerReachedError(Exception):
    """Raised inside the attention of the last wanted layer; caught by `run_to_layer`."""


@dataclass(frozen=True)
class Stop:
    """Look: end the pass at a layer, before its attention is computed.

    Attributes:
        layer: Decoder layer. Its keys and values are in the cache by then.
    """

    layer: int

    def look(self, call: Call) -> None:
        """Raises `LayerReachedError` at the layer."""
        if call.layer == self.layer:
            raise LayerReachedError


def run_to_layer(model: Any, layer: int, input_ids: Tensor, cache: Any = None, *, gradients: bool = False) -> None:
    """Run the model up to the attention of one layer. There is no output.

    The layer's keys and values still enter the cache, and looks that were added before still see it. Layers above stay as they were, also in
    the cache.

    Args:
        model: A `Model`, or a transformers model.
        layer: The last layer that runs.
        input_ids: [B, T].
        cache: They are appended to it; None for no cache.
        gradients: Keep what a backward pass needs, for a loss on what looks have seen.

    Raises:
        HeadwiseError: The layer has no softmax attention, or the cache is a compressed one, whose layers are filled together.
    """
    with attached(model) as plan, torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
        if layer not in plan.model.modules:
            raise HeadwiseError(f"layer {layer} has no attention to stop at; choose one of {sorted(plan.model.modules)}")
        if hasattr(cache, "begin"):
            raise HeadwiseError("a pass over a compressed cache cannot end at a layer; run the whole model")
        with plan.running(Stop(layer)):
            try:
                if cache is None:
                    plan.model.hf(input_ids=input_ids, use_cache=False)
                else:
                    forward(plan.model.hf, input_ids, cache)
            except LayerReachedError:
                pass
