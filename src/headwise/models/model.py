"""`Model`: a loaded causal language model, its tokenizer, and what the rest of headwise needs to know of its heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import nn

from headwise.heads import HeadSet, HeadwiseError, UnsupportedModelError
from headwise.heads.text import shorten
from headwise.heads.types import Heads
from headwise.models.families import Family, family_of
from headwise.models.forward import cache_argument


@dataclass(frozen=True)
class HeadGrid:
    """The heads of one model.

    Attributes:
        shape: (decoder layers, query heads per layer). Layers without softmax attention count as layers.
        kv_heads: KV heads per layer; query head h reads KV head h // (query heads / KV heads).
        head_dim: Width of one head's query and key.
        windows: Layer with softmax attention -> its sliding window in tokens, or None for full attention.
    """

    shape: tuple[int, int]
    kv_heads: int
    head_dim: int
    windows: Mapping[int, int | None]

    @property
    def full_layers(self) -> list[int]:
        """Layers that see the whole context."""
        return [layer for layer, window in self.windows.items() if window is None]


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model ready to be attached to.

    `headwise.load(NAME)` makes one from a name, `Model(hf, tokenizer)` wraps a model that is already loaded.

    Attributes:
        hf: The transformers model.
        tokenizer: Its tokenizer, or None where only token ids are used.
        name: What results call it; by default the hub id or folder it was loaded from, else its model type.
        family: The declaration of its model family.
        heads: Its heads: layers, query heads, KV heads, sliding windows.
        positions: Longest context in tokens, or None without a limit.
        modules: Layer -> attention module, for layers with softmax attention.
    """

    hf: Any
    tokenizer: Any = None
    name: str = ""
    family: Family = field(init=False)
    heads: HeadGrid = field(init=False)
    positions: int | None = field(init=False)
    modules: Mapping[int, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        config: Any = self.hf.config
        family = family_of(config.model_type)
        text = config.get_text_config(decoder=True)
        layers = follow(self.hf, family.layers)
        modules = {i: follow(layer, family.attention) for i, layer in enumerate(layers) if hasattr(layer, family.attention)}
        if not modules:
            raise UnsupportedModelError(f"no attention found at {family.layers}.*.{family.attention} of {type(self.hf).__name__}")
        heads = int(text.num_attention_heads)
        grid = HeadGrid(
            shape=(len(layers), heads),
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=_head_dim(text),
            windows={i: _window(text, i) for i in modules},
        )
        facts = {
            "family": family,
            "name": self.name or str(getattr(config, "_name_or_path", "") or config.model_type),
            "heads": grid,
            "positions": getattr(text, "max_position_embeddings", None),
            "modules": modules,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)
        self._check_projections()

    @property
    def is_hybrid(self) -> bool:
        """True if some layers keep a recurrent state, which cannot be cut back."""
        return len(self.modules) < self.heads.shape[0]

    def by_layer(self, heads: Heads | None) -> dict[int, list[int]]:
        """Layer -> its chosen heads in ascending order (None: all heads of all attention layers). Raises like `check`."""
        if heads is None:
            return {layer: list(range(self.heads.shape[1])) for layer in self.modules}
        chosen = self.check(heads)
        return {layer: sorted(h.head for h in chosen if h.layer == layer) for layer in {h.layer for h in chosen}}

    def check(self, heads: Heads) -> HeadSet:
        """Heads of this model from whatever `HeadSet.of` takes.

        Raises:
            HeadwiseError: They are no heads, or belong to a model of another shape.
            UnsupportedModelError: One lies in a layer without attention heads.
        """
        chosen = HeadSet.of(heads, self.heads.shape, "given one by one", self.name)
        missing = sorted({head.layer for head in chosen} - set(self.modules))
        if missing:
            raise UnsupportedModelError(f"layer {missing[0]} of {self.name} has no attention heads (a linear-attention layer)")
        return chosen

    def generate(self, text: str, max_new_tokens: int = 64, cache: Any = None) -> str:
        """The model's greedy continuation of a text, as the tokenizer encodes it (no chat template).

        Args:
            text: The prompt.
            max_new_tokens: At most so many tokens; an end-of-text token ends it earlier.
            cache: The empty cache of an open `compress` block, to answer from a compressed text.

        Returns:
            The new text only, without special tokens.

        Raises:
            HeadwiseError: No tokenizer, an empty prompt, one that does not fit, or `max_new_tokens` below 1.
        """
        need_tokenizer(self, "generating text")
        if not isinstance(text, str) or not text:
            raise HeadwiseError(f"the prompt must be a text that is not empty; got {shorten(repr(text))}")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise HeadwiseError(f"max_new_tokens must be at least 1; got {shorten(repr(max_new_tokens))}")
        ids = torch.tensor([self.tokenizer.encode(text)], device=self.hf.device)
        room = max_new_tokens if self.positions is None else self.positions - ids.shape[1]
        if room < 1:
            raise HeadwiseError(f"the prompt has {ids.shape[1]} tokens, but {self.name} has {self.positions} positions; shorten it")
        kind: Any = type(self.hf)
        given = {} if cache is None else {cache_argument(kind): cache}
        with torch.no_grad():
            said = self.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_greedy(self.hf.generation_config, min(max_new_tokens, room)),
                **given,
            )
        return str(self.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    def _check_projections(self) -> None:
        """The output projection must take heads x head_dim inputs; otherwise heads would be cut at the wrong places."""
        for layer, module in self.modules.items():
            projection = follow(module, self.family.output)
            width = projection.weight.shape[0] if self.family.query == "conv" else projection.weight.shape[1]
            if width != self.heads.shape[1] * self.heads.head_dim:
                raise UnsupportedModelError(
                    f"layer {layer}: the output projection takes {width} inputs, "
                    f"not {self.heads.shape[1]} heads x {self.heads.head_dim}"
                )


def as_model(model: Any) -> Model:
    """The model itself if it is a `Model`, else a transformers model wrapped without a tokenizer. Raises like `transformers_model`."""
    return model if isinstance(model, Model) else Model(transformers_model(model))


def transformers_model(model: Any) -> Any:
    """The transformers model inside a `Model`, or the given one.

    Raises:
        HeadwiseError: Something else was given.
    """
    if isinstance(model, Model):
        return model.hf
    if not hasattr(model, "config"):
        hint = f"; headwise.load({shorten(model)!r}) loads one" if isinstance(model, str) else ""
        raise HeadwiseError(f"a headwise.Model or a model of transformers is needed; got {shorten(repr(model))}{hint}")
    return model


def need_tokenizer(model: Any, purpose: str) -> Model:
    """The `Model`, which must have a tokenizer.

    Raises:
        HeadwiseError: A plain transformers model, a `Model` without a tokenizer, or no model at all.
    """
    found = as_model(model)
    if found.tokenizer is None:
        raise HeadwiseError(f"{purpose} needs a tokenizer; give headwise.load(NAME), or headwise.Model(model, tokenizer)")
    return found


def _greedy(config: Any, limit: int) -> Any:
    """The model's own settings of `generate`, but greedy and for `limit` new tokens, without those that only sampling reads (they raise warnings)."""
    found = copy.copy(config)
    found.do_sample, found.num_beams, found.max_new_tokens, found.max_length = False, 1, limit, None
    found.temperature = found.top_p = found.top_k = None
    return found


def _head_dim(text: Any) -> int:
    declared = getattr(text, "head_dim", None)
    return int(declared or text.hidden_size // text.num_attention_heads)


def _window(text: Any, layer: int) -> int | None:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return int(text.sliding_window) if kinds[layer] == "sliding_attention" else None
    window = getattr(text, "sliding_window", None)
    return int(window) if window else None


def follow(root: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    return reduce(getattr, path.split("."), root)
