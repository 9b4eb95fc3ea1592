"""What the rest of headwise needs to know of a loaded model: its heads, its attention modules, its windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from headwise.core.errors import UnsupportedModelError
from headwise.core.heads import HeadSet
from headwise.families.declarations import Family, family_of


@dataclass(frozen=True)
class Layout:
    """Heads of one model.

    shape: (decoder layers, query heads per layer); layers without softmax attention count as layers but have no module.
    modules: layer -> attention module. windows: layer -> sliding window in tokens, or None for full attention.
    """

    family: Family
    name: str
    shape: tuple[int, int]
    kv_heads: int
    head_dim: int
    positions: int | None
    modules: dict[int, nn.Module]
    windows: dict[int, int | None]

    @property
    def full_layers(self) -> list[int]:
        """Layers that see the whole context."""
        return [layer for layer, window in self.windows.items() if window is None]

    @property
    def is_hybrid(self) -> bool:
        """True if some layers keep a recurrent state, which cannot be cropped."""
        return len(self.modules) < self.shape[0]

    def by_layer(self, heads: HeadSet | None) -> dict[int, list[int]]:
        """Layer -> its chosen heads in ascending order (None: all heads of all attention layers). Raises like `check`."""
        if heads is None:
            return {layer: list(range(self.shape[1])) for layer in self.modules}
        self.check(heads)
        return {layer: sorted(h.head for h in heads if h.layer == layer) for layer in {h.layer for h in heads}}

    def check(self, heads: HeadSet) -> None:
        """Raise unless `heads` belong to a model of this shape and lie in attention layers."""
        heads.check_fits(self.shape, self.name)
        missing = sorted({head.layer for head in heads} - set(self.modules))
        if missing:
            raise UnsupportedModelError(f"layer {missing[0]} of {self.name} has no attention heads (a linear-attention layer)")


def layout_of(model: nn.Module) -> Layout:
    """Read the layout of a loaded causal language model; refuses what cannot be attached to."""
    config: Any = model.config
    family = family_of(config.model_type)
    text = config.get_text_config(decoder=True)
    layers = follow(model, family.layers)
    modules = {i: follow(layer, family.attention) for i, layer in enumerate(layers) if hasattr(layer, family.attention)}
    if not modules:
        raise UnsupportedModelError(f"no attention found at {family.layers}.*.{family.attention} of {type(model).__name__}")
    heads, dim = int(text.num_attention_heads), _head_dim(text)
    layout = Layout(
        family=family,
        name=str(getattr(config, "_name_or_path", "") or config.model_type),
        shape=(len(layers), heads),
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=dim,
        positions=getattr(text, "max_position_embeddings", None),
        modules=modules,
        windows={i: _window(module, text, i) for i, module in modules.items()},
    )
    _self_check(layout)
    return layout


def _self_check(layout: Layout) -> None:
    """The output projection must take heads x head_dim inputs; otherwise heads would be cut at the wrong places."""
    for layer, module in layout.modules.items():
        projection = follow(module, layout.family.output)
        width = projection.weight.shape[0] if layout.family.query == "conv" else projection.weight.shape[1]
        if width != layout.shape[1] * layout.head_dim:
            raise UnsupportedModelError(
                f"layer {layer}: the output projection takes {width} inputs, not {layout.shape[1]} heads x {layout.head_dim}"
            )


def _head_dim(text: Any) -> int:
    declared = getattr(text, "head_dim", None)
    return int(declared or text.hidden_size // text.num_attention_heads)


def _window(module: nn.Module, text: Any, layer: int) -> int | None:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return int(text.sliding_window) if kinds[layer] == "sliding_attention" else None
    window = getattr(text, "sliding_window", None)
    return int(window) if window else None


def follow(root: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    return reduce(getattr, path.split("."), root)
