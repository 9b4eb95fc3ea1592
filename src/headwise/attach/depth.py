"""Running a model only as deep as somebody looks: what lies above the deepest layer of interest is never computed."""

from __future__ import annotations

from typing import Any

import torch

from headwise.attach.plan import attached
from headwise.core.errors import HeadwiseError


class LayerReachedError(Exception):
    """Raised inside the attention of the last wanted layer; caught by `run_to_layer`."""


@torch.no_grad()
def run_to_layer(model: Any, layer: int, **inputs: Any) -> None:
    """Run `model(**inputs)` up to the attention of `layer`, whose keys and values still enter the cache and whose taps still see it.

    There is no output. Layers above stay as they were, also in the cache.
    """
    with attached(model) as plan:
        if layer not in plan.layout.modules:
            raise HeadwiseError(f"layer {layer} has no attention to stop at; choose one of {sorted(plan.layout.modules)}")
        before, plan.last = plan.last, layer
        try:
            model(**inputs)
        except LayerReachedError:
            pass
        finally:
            plan.last = before
