"""`Model`: a loaded causal language model, its tokenizer, and what the rest of headwise needs to know of its heads."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from torch import nn

from headwise.heads import HeadSet, HeadwiseError, UnsupportedModelError
from headwise.heads.text import shorten
from headwise.heads.types import Heads
from headwise.models.adapters import describe_adapter, without_adapter
from headwise.models.families import Family, family_of
from headwise.models.names import label
from headwise.models.quantized import source_of
from headwise.models.readout import Readout


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

    `headwise.load(NAME)` makes one from a name, `Model(hf, tokenizer)` wraps a model that is already loaded. Where that is a `PeftModel`,
    `hf` is the transformers model inside, whose layers run with the adapter.

    Attributes:
        hf: The transformers model.
        tokenizer: Its tokenizer, or None where only token ids are used.
        name: What results call it; by default the hub id, or the last part of the folder's path, it was loaded from, else its model type.
        adapter: The `PeftModel` around `hf`, or None; found in `hf`.
        family: The declaration of its model family.
        heads: Its heads: layers, query heads, KV heads, sliding windows.
        positions: Longest context in tokens, or None without a limit.
        modules: Layer -> attention module, for layers with softmax attention.

    Raises:
        UnsupportedModelError: The family is not known, or the model is not built as its family is declared.
        HeadwiseError: `hf` is no transformers model.
    """

    hf: Any
    tokenizer: Any = None
    name: str = ""
    adapter: Any = None
    family: Family = field(init=False)
    heads: HeadGrid = field(init=False)
    positions: int | None = field(init=False)
    modules: Mapping[int, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        inner = transformers_model(self.hf)
        config: Any = inner.config
        family, text = family_of(config.model_type), config.get_text_config(decoder=True)
        layers = _decoder_layers(inner, family)
        modules = {i: follow(layer, family.attention) for i, layer in enumerate(layers) if hasattr(layer, family.attention)}
        if not modules:
            raise UnsupportedModelError(f"no attention found at {family.layers}.*.{family.attention} of {type(inner).__name__}")
        heads = int(text.num_attention_heads)
        grid = HeadGrid(
            shape=(len(layers), heads),
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=_head_dim(text),
            windows={i: _window(text, i) for i in modules},
        )
        facts = {
            "adapter": self.adapter if inner is self.hf else self.hf,
            "hf": inner,
            "family": family,
            "name": self.name or label(str(getattr(config, "_name_or_path", "") or "")) or config.model_type,
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

    @property
    def layers(self) -> Any:
        """The decoder layers, as transformers holds them."""
        return follow(self.hf, self.family.layers)

    def part(self, name: str, layer: int) -> Any:
        """A part of a layer by its name in `Family`, such as `mlp`, `output` or `key_norm`; None where the family has none.

        Parts of attention exist only in layers that have heads.
        """
        path = getattr(self.family, name)
        root = self.modules[layer] if name in ATTENTION_PARTS else self.layers[layer]
        return follow(root, path) if path else None

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return follow(self.hf, self.family.final_norm)  # type: ignore[no-any-return]

    @property
    def readout(self) -> Readout:
        """How logits come from hidden states behind the final norm."""
        scale = (self._number("logit_scale") or 1.0) / (self._number("logit_divisor") or 1.0)
        return Readout(self.hf.get_output_embeddings(), scale, self._number("logit_cap"))

    @property
    def attention_cap(self) -> float | None:
        """Attention logits are capped: cap * tanh(logits / cap); None where they are not."""
        return self._number("attention_cap")

    @property
    def residual_scale(self) -> float:
        """What attention and MLP add to the residual stream is multiplied by it."""
        scale = self._number("residual_scale")
        return 1.0 if scale is None else scale

    @property
    def embedding_scale(self) -> float:
        """What the embedding gives is multiplied by it before the first layer."""
        scale = self._number("embedding_scale")
        return 1.0 if scale is None else scale

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: those of the generation configuration and the tokenizer's end-of-text token."""
        configured = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        ends = {
            *(configured if isinstance(configured, list | tuple) else [configured]),
            getattr(self.tokenizer, "eos_token_id", None),
        }
        return frozenset(end for end in ends if end is not None)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of weights and tokenizer as they are when first asked for; see `headwise.models.fingerprint`."""
        from headwise.models.fingerprint import model_digest

        return model_digest(self.hf, self.tokenizer)

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
            HeadwiseError: No tokenizer, an empty prompt, one that does not fit, `max_new_tokens` below 1, or a logit that is NaN or infinite.
        """
        from headwise.models.forward import cache_argument, finite_scores

        need_tokenizer(self, "generating text")
        if not isinstance(text, str) or not text:
            raise HeadwiseError(f"the prompt must be a text that is not empty; got {shorten(repr(text))}")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise HeadwiseError(f"max_new_tokens must be at least 1; got {shorten(repr(max_new_tokens))}")
        ids = torch.tensor([self.tokenizer.encode(text)], device=device_of(self.hf))
        room = max_new_tokens if self.positions is None else self.positions - ids.shape[1]
        if room < 1:
            raise HeadwiseError(
                f"the prompt has {ids.shape[1]} tokens, but {self.name} has {self.positions} positions; shorten it"
            )
        kind: Any = type(self.hf)
        given = {} if cache is None else {cache_argument(kind): cache}
        with torch.no_grad():
            said = self.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_greedy(self.hf.generation_config, min(max_new_tokens, room)),
                logits_processor=[finite_scores],
                **given,
            )
        return str(self.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    def _number(self, name: str) -> float | None:
        """The configuration's value of a declared field; None where the family has no such field, or it is not set."""
        declared = getattr(self.family, name)
        value = getattr(self.hf.config.get_text_config(decoder=True), declared) if declared else None
        return None if value is None else float(value)

    def _check_projections(self) -> None:
        """The output projection must take heads x head_dim inputs; otherwise heads would be cut at the wrong places."""
        for layer in self.modules:
            width = inputs_of(self.part("output", layer), transposed=self.family.query == "conv")
            if width != self.heads.shape[1] * self.heads.head_dim:
                raise UnsupportedModelError(
                    f"layer {layer}: the output projection takes {width} inputs, "
                    f"not {self.heads.shape[1]} heads x {self.heads.head_dim}"
                )


# Fields of `Family` whose paths start at the attention module; the other parts of a layer start at the layer.
ATTENTION_PARTS = ("output", "query_norm", "key_norm", "sinks")
PACKAGES = ("headwise", "torch", "transformers", "numpy")  # whose versions stand in a result


def as_model(model: Any) -> Model:
    """The model itself if it is a `Model`, else a transformers model (or a `PeftModel`) wrapped without a tokenizer.

    Raises:
        HeadwiseError: Something else was given.
    """
    return model if isinstance(model, Model) else Model(model)


def transformers_model(model: Any) -> Any:
    """The transformers model inside a `Model` or a `PeftModel`, or the given one.

    Raises:
        HeadwiseError: Something else was given.
    """
    if isinstance(model, Model):
        return model.hf
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        hint = f"; headwise.load({model[:60]!r}) loads one" if isinstance(model, str) else ""
        raise HeadwiseError(f"a headwise.Model or a model of transformers is needed; got {shorten(repr(model))}{hint}")
    # Known by the class's name, so that peft need not be imported.
    is_adapter = any(base.__name__ == "PeftModel" and base.__module__.startswith("peft") for base in type(model).__mro__)
    return without_adapter(model) if is_adapter else model


def says_quantized(config: Any) -> bool:
    """Whether a configuration says that the model's weights are quantized; how, says `headwise.models.quantized`."""
    return any(getattr(part, "quantization_config", None) is not None for part in (config, config.get_text_config(decoder=True)))


def need_tokenizer(model: Any, purpose: str) -> Model:
    """The `Model`, which must have a tokenizer.

    Raises:
        HeadwiseError: A plain transformers model, a `Model` without a tokenizer, or no model at all.
    """
    found = as_model(model)
    if found.tokenizer is None:
        raise HeadwiseError(f"{purpose} needs a tokenizer; give headwise.load(NAME), or headwise.Model(model, tokenizer)")
    return found


def describe_model(model: Model) -> dict[str, Any]:
    """Where a result comes from. No time stamps: the same run gives the same bytes.

    Returns:
        Model, shape, tokenizer, dtype, device and library versions. The model is called by its name, never by the path of its folder. `source` is
        there for weights that were packed (a GGUF file, a quantized checkpoint), also after a conversion: format, name of the file, quantization.
        `adapter` is there for a `PeftModel`: see `describe_adapter`.
    """
    config = model.hf.config
    source = source_of(config) if says_quantized(config) else getattr(config, "headwise_source", None)
    added = {"source": source, "adapter": None if model.adapter is None else describe_adapter(model.adapter)}
    return {
        "model": model.name,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "layers": model.heads.shape[0],
        "heads": model.heads.shape[1],
        "kv_heads": model.heads.kv_heads,
        "head_dim": model.heads.head_dim,
        "sliding_layers": sorted(i for i, window in model.heads.windows.items() if window is not None),
        "layers_without_heads": sorted(set(range(model.heads.shape[0])) - set(model.modules)),
        "tokenizer": type(model.tokenizer).__name__ if model.tokenizer is not None else None,
        "vocabulary": len(model.tokenizer.get_vocab()) if model.tokenizer is not None else None,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        **{key: value for key, value in added.items() if value},
        "device": device_of(model.hf).type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def check_ids(hf: Any, lowest: int, highest: int) -> None:
    """Raise `HeadwiseError` if the smallest or largest of some token ids is none of a transformers model: torch would fail in a kernel."""
    table = hf.get_input_embeddings()
    size = getattr(table, "num_embeddings", None) or hf.config.get_text_config(decoder=True).vocab_size
    if lowest < 0 or highest >= size:
        wrong = lowest if lowest < 0 else highest
        raise HeadwiseError(
            f"token id {wrong} is outside of the model's vocabulary of {size} tokens; is it from another tokenizer?"
        )


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, and so where its inputs belong: the device of its first parameter.

    Parameters that accelerate has moved away (offload) lie on `meta` between passes; then its hook names the device.
    """
    first = next(module.parameters()).device
    if first.type != "meta":
        return first
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for own in getattr(hook, "hooks", (hook,)):
            device = getattr(own, "execution_device", None)
            if device is not None:
                return torch.device(device)
    raise HeadwiseError("the model's weights are on the device 'meta', that is, nowhere; load them first")


def _greedy(config: Any, limit: int) -> Any:
    """The model's own settings of `generate`, but greedy and for `limit` new tokens, without those that only sampling reads (they raise warnings)."""
    found = copy.copy(config)
    found.do_sample, found.num_beams, found.max_new_tokens, found.max_length = False, 1, limit, None
    found.temperature = found.top_p = found.top_k = None
    return found


def use_the_cap(hf: Any) -> None:
    """Old releases of transformers run SDPA, which knows no cap, for models with capped attention logits (Gemma 2): a plain pass is then wrong."""
    if as_model(hf).attention_cap is not None and hf.config._attn_implementation == "sdpa":
        hf.set_attn_implementation("eager")


def inputs_of(projection: Any, transposed: bool = False) -> int:
    """Inputs of a linear layer, also where its weight is packed (4 bits) and so has another shape. transposed: GPT-2's layers."""
    if transposed:
        return int(projection.weight.shape[0])
    return int(projection.in_features if hasattr(projection, "in_features") else projection.weight.shape[1])


def _decoder_layers(hf: Any, family: Family) -> Any:
    try:
        return follow(hf, family.layers)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(hf).__name__} has no {family.layers}; load the model with AutoModelForCausalLM or headwise.load"
        ) from error


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
