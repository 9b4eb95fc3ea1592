"""A chooser that is a complete smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call, Pass, Whole
from headwise.attention.plan import attached
from headwise.caches.chooser_parts import head_weights, in_layers, weight_bytes
from headwise.caches.choosers import FreeChooser
from headwise.caches.roomy import roomy_cache
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.models.forward import forward
from headwise.models.model import Model, as_model


class SmallModel(FreeChooser):
    """A complete smaller model of the same tokenizer reads the same tokens first, and its attention chooses.

    Args:
        model: The smaller model.
        heads: Those of its heads that count; None: all.
    """

    name, reads_text = "small_model", True

    def __init__(self, model: Any, heads: Heads | None = None) -> None:
        self._small, self._heads = as_model(model), heads

    def start(self, model: Model, layers: Sequence[int]) -> None:
        """Refuse a model with another vocabulary."""
        sizes = [each.hf.config.get_text_config(decoder=True).vocab_size for each in (self._small, model)]
        if sizes[0] != sizes[1]:
            raise HeadwiseError(
                f"{self._small.name} has {sizes[0]} tokens and {model.name} {sizes[1]}; a chooser must read the same tokens"
            )
        if self._small.hf is model.hf:
            raise HeadwiseError("the small model is the model itself; load it a second time, or use RetrievalHeads")
        self._by_layer = in_layers(self._small, self._heads, self._small.heads.full_layers)
        self._first, self._weights = min(layers), weight_bytes(self._small.hf)
        self._cache = roomy_cache(self._small.hf.config)
        self._found: Tensor | None = None

    @torch.no_grad()
    def begin(self, now: Pass) -> None:
        """Read the new tokens."""
        if now.inputs is None or now.inputs.is_floating_point():
            raise HeadwiseError("a small model needs token ids; embeddings were given")
        self._found = None
        back = self._cache.get_seq_length() - now.before
        if back > 0:
            self._cache.crop(-back)
        with attached(self._small) as plan, plan.running(_Rows(self)):
            forward(self._small.hf, now.inputs, self._cache, attention_mask=now.mask, logits_to_keep=1)

    def scores(self, call: Call, whole: Whole) -> Tensor | None:
        """[B, 1, S], the newest token among them."""
        return self._found

    def reads(self, layer: int, whole: Whole) -> int:
        """Once per step: the weights of the small model, and all keys and values of its own cache."""
        tables = (getattr(own, part, None) for own in self._cache.layers for part in ("keys", "values"))
        held = sum(table.numel() * table.element_size() for table in tables if table is not None)
        return self._weights + held if layer == self._first else 0

    def add(self, call: Call) -> None:
        """A layer of the small model has attended."""
        if call.layer in self._by_layer:
            found = head_weights(call, call.whole, self._by_layer[call.layer]).sum(dim=1, keepdim=True)
            self._found = found if self._found is None else self._found + found


class _Rows:
    """Step on the small model."""

    def __init__(self, chooser: SmallModel) -> None:
        self._chooser = chooser

    def look(self, call: Call) -> None:
        """Hand the call over."""
        self._chooser.add(call)
