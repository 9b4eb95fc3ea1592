"""The plan: what the attention function of one model does besides attention while a `with` block is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model, as_model, transformers_model

NAME = "headwise"


@dataclass(frozen=True)
class Call:
    """One attention call: what taps get to see.

    query [B, H, T, d]; keys, values: segments [B or 1, G, S_i, d]; mask bool or None (causal); output [B, T, H, d] before ablation.
    """

    layer: int
    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    output: Tensor

    @property
    def visible(self) -> Tensor | None:
        """The mask as bool. Others come from callers who pass a 4D mask of their own; its finite entries are visible."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return self.mask
        return self.mask > torch.finfo(self.mask.dtype).min / 2


class Edit(Protocol):
    """A change to what heads do. Both hooks return the tensor to go on with. start: position of the first query row in the text."""

    def query(self, layer: int, query: Tensor, start: int) -> Tensor:
        """Change the query [B, H, T, d] before attention."""

    def output(self, call: Call, output: Tensor, start: int) -> Tensor:
        """Change the output [B, T, H, d] after attention."""


@dataclass
class Plan:
    """State of one attached model; lives as long as the outermost `with` block.

    past: layer -> keys and values that all batch rows share (see `shared_past`). tail: see `last_rows`. last: see `run_to_layer`.
    before: positions in front of the pass that is running; None outside of the whole model. keeper: see `KeptCache`, if it runs over one.
    calls: attention calls of that pass.
    """

    model: Model
    taps: list[Callable[[Call], None]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tail: tuple[int, int] | None = None
    last: int | None = None
    before: int | None = None
    keeper: Callable[[Call], None] | None = None
    hooks: list[Any] = field(default_factory=list)
    depth: int = 0
    calls: int = 0

    def enter(self, model: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Hook: a pass of the whole model begins."""
        self.calls = 0
        caches = [given for given in (*inputs, *options.values()) if isinstance(given, Cache)]
        self.before = caches[0].get_seq_length() if caches else 0
        begin = getattr(caches[0], "begin", None) if caches else None
        self.keeper = begin(model, inputs, options) if begin else None

    def leave(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Hook: it has ended, or failed (output None). A pass that never came to our attention would be wrong without a word."""
        self.before = self.keeper = None
        if output is not None and not self.calls and (self.taps or self.edits):
            raise HeadwiseError(
                f"this {type(model).__name__} did not run headwise's attention, so its heads were neither seen nor changed; "
                "another library may have replaced its attention modules or its attn_implementation"
            )

    def start(self, layer: int, rows: int, length: int) -> int:
        """Position of a layer's first query row. Its keys alone do not tell: caches of transformers drop what sliding windows cannot see."""
        if self.before is not None:
            return self.before
        if rows < length and self.model.heads.windows[layer] is not None:
            raise HeadwiseError(
                "a part of the model was called over a cache; to change heads of sliding-window layers call the whole model"
            )
        return length - rows


_PLANS: WeakKeyDictionary[nn.Module, Plan] = WeakKeyDictionary()
_BY_MODULE: WeakKeyDictionary[nn.Module, tuple[Plan, int]] = WeakKeyDictionary()


def plan_for_module(module: nn.Module) -> tuple[Plan, int]:
    """The plan and layer index of an attention module."""
    found = _BY_MODULE.get(module)
    if found is None:
        raise HeadwiseError(f"attention {NAME!r} was used outside of a headwise `with` block")
    found[0].calls += 1
    return found


def keeper_of(module: nn.Module) -> Callable[[Call], None] | None:
    """What the pass that is running does after an attention module; None outside of one over a compressed cache."""
    found = _BY_MODULE.get(module)
    return None if found is None else found[0].keeper


@contextmanager
def attached(model: Any) -> Iterator[Plan]:
    """Run `model` with headwise's attention inside the block; nested blocks share one plan. Restores everything on exit."""
    from headwise.attention.function import register

    register()
    known, model = model, transformers_model(model)
    plan = _PLANS.get(model)
    if plan is None:
        plan = Plan(as_model(known))
    before = _implementations(model)
    if plan.depth == 0:
        _PLANS[model] = plan
        for layer, module in plan.model.modules.items():
            _BY_MODULE[module] = (plan, layer)
        model.set_attn_implementation(NAME)
        plan.hooks = [
            model.register_forward_pre_hook(plan.enter, with_kwargs=True),
            model.register_forward_hook(plan.leave, always_call=True),
        ]
    plan.depth += 1
    try:
        yield plan
    finally:
        plan.depth -= 1
        if plan.depth == 0:
            for hook in plan.hooks:
                hook.remove()
            for config, name in before:
                config._attn_implementation = name
            for module in plan.model.modules.values():
                _BY_MODULE.pop(module, None)
            _PLANS.pop(model, None)


def _implementations(model: Any) -> list[tuple[Any, str | None]]:
    """Every configuration object inside the model, with the attention it names."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in list(configs.values()):
        for name in getattr(config, "sub_configs", {}) or {}:
            part = getattr(config, name, None)
            if part is not None:
                configs[id(part)] = part
    return [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]


def no_dropout(dropout: float) -> None:
    """Attention dropout would make every statistic random; refuse it."""
    if dropout:
        raise HeadwiseError(f"the model is in training mode with attention dropout {dropout:g}; call model.eval() or set it to 0")


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(model.parameters()).device
