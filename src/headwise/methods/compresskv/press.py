"""CompressKV (Lin et al. 2025, arXiv:2508.02401): a few heads of each layer choose what the whole layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from headwise.caches.allocation import ByLayer, Uniform
from headwise.caches.kept_layer import View
from headwise.caches.press import WindowPress
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.models.model import Model

SHARINGS = ("layer", "group")


@dataclass(frozen=True, kw_only=True)
class CompressKV(WindowPress):
    """Figure 3 of the paper: the attention of the last queries in the chosen heads, averaged over neighbours and over those heads.

    Every layer that is compressed needs a chosen head; a layer without one is refused, not filled up with others.

    Attributes:
        heads: Scores, of which the `per_layer` best of every layer choose (equal scores: the lower head), or the heads that choose.
        per_layer: Heads of a layer that choose, if scores are given.
        sharing: `layer`: one choice for all KV heads of a layer (the paper); `group`: each KV head has that of its own chosen heads, and that of
            the layer if it has none.
        layer_errors: One per layer, for budgets by `ByLayer` (see `headwise.methods.compresskv.layer_errors`).
        chosen: Layer -> heads that choose, ascending.
    """

    found_by: ClassVar[str] = "semantic"  # the detector whose head file it takes by default

    heads: HeadScores | HeadSet = field(kw_only=False, repr=False)
    per_layer: int = 4
    sharing: str = "layer"
    layer_errors: Sequence[float] | None = None
    chosen: dict[int, list[int]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharing not in SHARINGS:
            raise HeadwiseError(f"unknown sharing {self.sharing!r}; use {' or '.join(SHARINGS)}")
        if self.per_layer < 1:
            raise HeadwiseError(f"per_layer must be at least 1 head; got {self.per_layer}")
        if not isinstance(self.heads, HeadScores | HeadSet):
            raise HeadwiseError(
                "heads must be scores of heads, or a choice of heads (of a list: HeadSet.of(list, model.heads.shape)); "
                f"got {type(self.heads).__name__}"
            )
        if self.layer_errors is not None:
            by_layer = ByLayer(tuple(float(error) for error in self.layer_errors))
            if self.allocation not in (Uniform(), by_layer):
                raise HeadwiseError("give either layer_errors or an allocation, not both")
            object.__setattr__(self, "allocation", by_layer)
        object.__setattr__(self, "chosen", self._choose())

    def check(self, model: Model) -> None:
        """Refuse a model that the heads do not serve.

        Raises:
            HeadwiseError: Heads of another model, a compressed layer without a chosen head, or one whose scores are all equal.
        """
        super().check(model)
        HeadSet((), self.heads.shape).check_fits(model.heads.shape, model.name)
        missing = [layer for layer in model.heads.full_layers if layer not in self.chosen]
        if missing:
            raise HeadwiseError(
                f"no chosen head in {len(missing)} of the {len(model.heads.full_layers)} layers to compress (the first: layer {missing[0]}); "
                "give scores of the heads of all layers (headwise detect semantic), or choose a head in each of them"
            )
        for layer in model.heads.full_layers:
            found = self.heads.values[layer] if isinstance(self.heads, HeadScores) else np.empty(0)
            found = found[~np.isnan(found)]
            if len(found) > self.per_layer and (found == found[0]).all():
                raise HeadwiseError(
                    f"all heads of layer {layer} have the same score ({found[0]:g}), so none of them are the best "
                    f"{self.per_layer}; take semantic scores (headwise detect semantic), or choose the heads yourself"
                )

    def scores(self, view: View) -> Tensor:
        """[B, 1, S] for sharing `layer`, [B, KV heads, S] for `group`."""
        heads = self.chosen[view.layer]
        each = self.head_scores(view, heads)
        shared = each.mean(dim=1, keepdim=True)
        if self.sharing == "layer":
            return shared
        size = view.model.heads.shape[1] // view.model.heads.kv_heads
        own = [[i for i, head in enumerate(heads) if head // size == group] for group in range(view.model.heads.kv_heads)]
        return torch.cat([each[:, places].mean(dim=1, keepdim=True) if places else shared for places in own], dim=1)

    def _choose(self) -> dict[int, list[int]]:
        best: dict[int, list[int]] = {}
        limit = self.per_layer if isinstance(self.heads, HeadScores) else self.heads.shape[1]
        for head in self.heads.ranking() if isinstance(self.heads, HeadScores) else self.heads:
            own = best.setdefault(head.layer, [])
            if len(own) < limit:
                own.append(head.head)
        return {layer: sorted(own) for layer, own in sorted(best.items())}
