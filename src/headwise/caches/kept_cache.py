"""A cache that holds only what a compression method keeps, and still counts every token: positions, masks and `generate` stay right.

The first pass over an empty cache is the prefill. It runs with full attention, and each layer is cut down right after its own attention, so
that at most one full layer exists at a time; methods with a streaming prefill never hold one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from headwise.attention.call import Call
from headwise.attention.plan import attached, keeper_of
from headwise.caches.kept_layer import Compressor, KeptLayer, Pass
from headwise.heads.errors import HeadwiseError
from headwise.models.forward import forward, set_length
from headwise.models.model import as_model


class KeptCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """The cache of one `compress` block. Pass it as `past_key_values` to the model or to `model.generate`.

    Args:
        model: A `Model`, or a transformers model.
        compressor: The method.

    Attributes:
        compressor: As given.
        model: As a `Model`.
        running: What the layers know of the pass that runs.
        skipped: Layers that are kept as transformers keeps them, because they have no full attention (sliding windows, recurrent states).
        ends_prompt: Inside `prefill`, whether the pass that runs is its last one; otherwise None.

    Raises:
        HeadwiseError: The method does not fit the model, or the model has no layer with full attention.
    """

    def __init__(self, model: Any, compressor: Compressor) -> None:
        model = as_model(model)
        compressor.check(model)
        self.compressor, self.model = compressor, model
        self.running, self.ends_prompt = Pass(), None
        layers = DynamicCache(config=model.hf.config).layers
        self.skipped = [i for i, layer in enumerate(layers) if type(layer) is not DynamicLayer]
        if len(self.skipped) == len(layers):
            raise HeadwiseError(f"{model.name} has no layer with full attention, so there is nothing to compress")
        exact = compressor.prefill == "windowed"
        for i in range(len(layers)):
            if i not in self.skipped:
                layers[i] = KeptLayer(
                    self.running, None if compressor.prefill == "dense" else compressor.streams(i, model), exact
                )
        super().__init__(layers=layers)

    @property
    def kept_layers(self) -> dict[int, KeptLayer]:
        """The layers that the method cuts down."""
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, KeptLayer)}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys, values and positions held, spare room included, and of the layers that are skipped."""
        return sum(_layer_bytes(layer) for layer in self.layers)

    def held_positions(self, row: int = 0) -> dict[int, list[Tensor]]:
        """Layer -> per KV head the positions it holds in ascending order, of one batch row. Empty before the prefill has ended."""
        return {i: layer.held_positions(row, self.model.heads.kv_heads) for i, layer in self.kept_layers.items()}

    def begin(self, hf: Any, ids: Tensor | None, mask: Any) -> KeptCache:
        """Called by the attached model when a pass over this cache begins; gives the look that ends each layer's attention.

        Args:
            hf: The transformers model.
            ids: Its inputs [B, T] or [B, T, width].
            mask: The attention mask as it was given.

        Raises:
            HeadwiseError: The cache belongs to another model, or the mask is none of shape [batch, tokens].
        """
        if hf is not self.model.hf:
            raise HeadwiseError(
                f"this cache was made for another model ({self.model.name}); open a `compress` block for this one"
            )
        if isinstance(mask, Tensor) and mask.dim() != 2:
            raise HeadwiseError("a compressed cache takes attention masks of shape [batch, tokens] only")
        padded = isinstance(mask, Tensor) and isinstance(ids, Tensor) and not bool(mask.bool().all())
        self.running.real = mask[:, -ids.shape[1] :].bool() if padded and isinstance(ids, Tensor) else None
        return self

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        set_length(self, None)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Called by the model's attention; as `KeptLayer.update`, with `layer_idx` the decoder layer.

        Raises:
            HeadwiseError: Outside of the block, and for parts of a model, where nothing would ever be cut.
        """
        if keeper_of(self.model.modules[layer_idx]) is None:
            raise HeadwiseError("a compressed cache works only inside the `compress` block, and with the whole model")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def look(self, call: Call) -> None:
        """Cut a layer down right after its attention, where a prefill ends with this pass."""
        layer = self.layers[call.layer]
        if isinstance(layer, KeptLayer):
            layer.cut(self.compressor, call, self.model)

    @torch.no_grad()
    def prefill(self, ids: Tensor, attention_mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """Read a prompt [B, S] into the empty cache, `chunk` tokens at a time; gives the logits [B, vocabulary] of its last token.

        A dense prefill in chunks holds the full cache until its end; the last chunk has at least `chunk` tokens, so that methods that look at
        the last queries find them.

        Args:
            ids: [B, S].
            attention_mask: [B, S], 0 for padding; real tokens then count from 0 in each row.
            chunk: Tokens per pass; None: all at once.

        Returns:
            [B, vocabulary].

        Raises:
            HeadwiseError: The cache is not empty, or the chunk is below 1.
        """
        model = self.model.hf
        if self.get_seq_length():
            raise HeadwiseError("a prefill needs an empty cache; call reset() first")
        if chunk is not None and chunk < 1:
            raise HeadwiseError(f"the chunk must be at least 1 token; got {chunk}")
        size = chunk or ids.shape[1]
        stops = [*range(size, ids.shape[1] - size + 1, size), ids.shape[1]]
        set_length(self, ids.shape[1] if attention_mask is None else int(attention_mask.sum(dim=1).max()))
        try:
            for start, stop in zip([0, *stops], stops, strict=False):
                self.running.last = self.ends_prompt = stop == stops[-1]
                padding: dict[str, Tensor] = {}
                if attention_mask is not None:
                    places = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
                    padding = {"attention_mask": attention_mask[:, :stop], "position_ids": places[:, start:stop]}
                out = forward(model, ids[:, start:stop], self, logits_to_keep=1, **padding)
        finally:
            self.running.last, self.ends_prompt = True, None
        logits: Tensor = out.logits[:, -1]
        return logits

    def fork(self) -> KeptCache:
        """A cache with the same content that grows independently: one compressed context, many questions.

        Keys and values are shared until one side changes.

        Raises:
            HeadwiseError: The prefill has not ended.
        """
        if any(layer.groups is None for layer in self.kept_layers.values()):
            raise HeadwiseError("only a cache whose prefill has ended can be forked")
        twin = copy.copy(self)
        twin.running = Pass()
        twin.layers = [layer.fork(twin.running) if isinstance(layer, KeptLayer) else _copied(layer) for layer in self.layers]
        return twin


@contextmanager
def compress(model: Any, compressor: Compressor) -> Iterator[KeptCache]:
    """Run the model over a compressed cache inside the block. Layers without full attention are left as they are (`cache.skipped`).

    Args:
        model: A `Model`, or a transformers model.
        compressor: The method; every press is one.

    Yields:
        An empty cache; `reset()` empties it again.

    Raises:
        HeadwiseError: The method does not fit the model, or the model has no layer with full attention.
    """
    with attached(model):
        yield KeptCache(model, compressor)


def _layer_bytes(layer: Any) -> int:
    if isinstance(layer, KeptLayer):
        return layer.nbytes
    states = [getattr(layer, name, None) for name in ("keys", "values")]
    states += [state for name in ("conv_states", "recurrent_states") for state in getattr(layer, name, {}).values()]
    return sum(state.numel() * state.element_size() for state in states if state is not None)


def _copied(layer: Any) -> Any:
    """A copy of a layer of transformers that may change in place."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(twin, name, {key: item.clone() if isinstance(item, Tensor) else item for key, item in value.items()})
    if isinstance(layer, DynamicSlidingWindowLayer) and layer.is_initialized:
        twin.keys, twin.values = layer.keys.clone(), layer.values.clone()
    return twin
