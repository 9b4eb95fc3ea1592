"""The plan: what the attention function of one model does besides attention while a `with` block is open.

Every layer's attention is a pipeline: *choose keys, edit query and keys, attend, edit the output, look*. A step says by its methods in which of
these it takes part; `Plan.running(step)` lets it do so inside a block.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from headwise.attention.provider import KeyProvider, Whole
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model, as_model, transformers_model

NAME = "headwise"


@dataclass(frozen=True)
class Pass:
    """One pass of the whole model, as it begins.

    Attributes:
        before: Positions in front of it, in its cache.
        inputs: Token ids [B, T] or embeddings [B, T, width]; None if the caller hides them.
        mask: The attention mask as it was given.
        has_cache: The caller gave a cache, be it an empty one.
        ends_prompt: Whether a prompt ends with this pass; None where nobody knows.
    """

    before: int
    inputs: Tensor | None
    mask: Any
    has_cache: bool
    ends_prompt: bool | None


@dataclass
class Call:
    """One attention call on its way through the pipeline.

    Attributes:
        plan: The plan of its model.
        layer: Decoder layer.
        query: [B, H, T, d] after position encoding.
        source: Where its keys and values come from.
        scaling: Factor of query times key.
        softcap, sinks: As in `row_statistics`.
    """

    plan: Plan
    layer: int
    query: Tensor
    source: KeyProvider
    scaling: float
    softcap: float | None
    sinks: Tensor | None

    @cached_property
    def output(self) -> Tensor:
        """[B, T, H, d] with all edits. Made when it is first asked for: a look that stops the pass then costs no attention."""
        for step in self.plan.attending:
            out = step.attend(self)
            if out is not None:
                break
        else:
            out = self.source.attend(self.query, scaling=self.scaling, softcap=self.softcap, sinks=self.sinks)
        for edit in self.plan.outputs:
            out = edit.edit_output(self, out)
        return out

    @cached_property
    def start(self) -> int:
        """Position of the first query row in the text (padding counts)."""
        return self.plan.start(self.layer, self.query.shape[2], self.source)

    @property
    def whole(self) -> Whole:
        """The source, for steps that need all keys. Raises `HeadwiseError` over a compressed cache."""
        if isinstance(self.source, Whole):
            return self.source
        raise HeadwiseError(
            f"layer {self.layer}: this needs all keys, but a compressed cache holds only some of them; run it over a full cache"
        )

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """Segments [B or 1, G, S_i, d] of all keys; see `whole`."""
        return self.whole.keys

    @property
    def values(self) -> tuple[Tensor, ...]:
        """Segments [B or 1, G, S_i, d] of all values; see `whole`."""
        return self.whole.values

    @property
    def mask(self) -> Tensor | None:
        """Mask over all keys, None for causal; see `whole`."""
        return self.whole.mask

    @property
    def visible(self) -> Tensor | None:
        """The mask as bool; see `whole`."""
        return self.whole.visible


@runtime_checkable
class ChoosesKeys(Protocol):
    """First stage: over which keys a layer attends."""

    def choose_keys(self, call: Call) -> KeyProvider:
        """The source that takes the place of `call.source`."""


@runtime_checkable
class EditsInputs(Protocol):
    """Second stage: changes query, keys or values."""

    def edit_inputs(self, call: Call) -> tuple[Tensor, KeyProvider]:
        """The query and the source to go on with."""


@runtime_checkable
class Attends(Protocol):
    """Third stage: attends in its own way."""

    def attend(self, call: Call) -> Tensor | None:
        """The output [B, T, H, d], or None to leave the call to others."""


@runtime_checkable
class EditsOutput(Protocol):
    """Fourth stage: changes what heads give."""

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """The output [B, T, H, d] to go on with; `output` is what the steps before have made of it."""


@runtime_checkable
class Looks(Protocol):
    """Last stage: sees the call and changes nothing."""

    def look(self, call: Call) -> None:
        """One layer of one pass. `call.output` is what the model goes on with."""


@runtime_checkable
class Begins(Protocol):
    """A step that must know each pass before its first layer."""

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins."""


Step = ChoosesKeys | EditsInputs | Attends | EditsOutput | Looks | Begins


@dataclass
class Plan:
    """The steps of one attached model; lives as long as the outermost `with` block.

    Attributes:
        model: The model.
        choosing, inputs, attending, outputs, looking, beginning: Steps by stage, in the order in which their blocks were opened.
        before: Positions in front of the pass that is running; None outside of the whole model.
        keeper: What a compressed cache does after each layer of that pass.
        called: Layers whose attention has run in that pass.
    """

    model: Model
    choosing: list[ChoosesKeys] = field(default_factory=list)
    inputs: list[EditsInputs] = field(default_factory=list)
    attending: list[Attends] = field(default_factory=list)
    outputs: list[EditsOutput] = field(default_factory=list)
    looking: list[Looks] = field(default_factory=list)
    beginning: list[Begins] = field(default_factory=list)
    before: int | None = None
    keeper: Looks | None = None
    hooks: list[Any] = field(default_factory=list)
    depth: int = 0
    called: set[int] = field(default_factory=set)

    @contextmanager
    def running(self, step: Step) -> Iterator[None]:
        """Let a step take part in every stage that it has a method for, until the block ends."""
        stages = self._stages(step)
        for steps in stages:
            steps.append(step)
        try:
            yield
        finally:
            for steps in stages:  # by identity, the newest first: steps may be equal, or run twice
                del steps[max(i for i, other in enumerate(steps) if other is step)]

    def _stages(self, step: Step) -> list[list[Any]]:
        kinds: list[tuple[Any, list[Any]]] = [
            (ChoosesKeys, self.choosing),
            (EditsInputs, self.inputs),
            (Attends, self.attending),
            (EditsOutput, self.outputs),
            (Looks, self.looking),
            (Begins, self.beginning),
        ]
        return [steps for kind, steps in kinds if isinstance(step, kind)]

    def enter(self, hf: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Hook: a pass of the whole model begins."""
        self.called.clear()
        kind: Any = type(hf)
        given = dict(zip(_parameters(kind), inputs, strict=False)) | options
        own = next((value for value in given.values() if isinstance(value, Cache)), None)
        first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None  # wrappers do not name what they take
        ids = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), first)
        self.before = own.get_seq_length() if own is not None else 0
        mask = given.get("attention_mask")
        begin = getattr(own, "begin", None)
        self.keeper = begin(hf, ids, mask) if begin else None
        if self.beginning:
            now = Pass(self.before, ids, mask, own is not None, getattr(own, "ends_prompt", None))
            for step in self.beginning:
                step.begin(now)

    def leave(self, hf: nn.Module, inputs: Any, output: Any) -> None:
        """Hook: it has ended, or failed (output None). Layers that never came to our attention would be wrong without a word."""
        watched = self.keeper or any((self.choosing, self.inputs, self.attending, self.outputs, self.looking))
        self.before = self.keeper = None
        missing = sorted(set(self.model.modules) - self.called) if output is not None and watched else []
        if missing:
            all_of_them = len(missing) == len(self.model.modules)
            which = "" if all_of_them else f" in layer{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            raise HeadwiseError(
                f"this {type(hf).__name__} did not run headwise's attention{which}, so its heads were neither seen nor changed"
                f"{'' if all_of_them else ' there'}; another library may have replaced its attention modules or its attn_implementation"
            )

    def start(self, layer: int, rows: int, source: KeyProvider) -> int:
        """Position of a layer's first query row. Its keys alone do not tell: caches of transformers drop what sliding windows cannot see."""
        if self.before is not None:
            return self.before
        length = source.length if isinstance(source, Whole) else rows
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
    found[0].called.add(found[1])
    return found


def keeper_of(module: nn.Module) -> Looks | None:
    """What the pass that is running does after an attention module; None outside of one over a compressed cache."""
    found = _BY_MODULE.get(module)
    return None if found is None else found[0].keeper


@contextmanager
def attached(model: Any) -> Iterator[Plan]:
    """Run a model with headwise's attention inside the block; nested blocks share one plan. Restores everything on exit.

    Args:
        model: A `Model`, or a transformers model.

    Yields:
        The plan, to which steps are added with `Plan.running`.
    """
    from headwise.attention.function import register

    register()
    hf = transformers_model(model)
    plan = _PLANS.get(hf)
    if plan is None:
        plan = Plan(as_model(model))
    before = _implementations(hf)
    if plan.depth == 0:
        _PLANS[hf] = plan
        for layer, module in plan.model.modules.items():
            _BY_MODULE[module] = (plan, layer)
        hf.set_attn_implementation(NAME)
        plan.hooks = [
            hf.register_forward_pre_hook(plan.enter, with_kwargs=True),
            hf.register_forward_hook(plan.leave, always_call=True),
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
            _PLANS.pop(hf, None)


@cache
def _parameters(kind: Any) -> Sequence[str]:
    """Names of what the `forward` of a model class takes, in order."""
    return list(inspect.signature(kind.forward).parameters)[1:]


def _implementations(hf: Any) -> list[tuple[Any, str | None]]:
    """Every configuration object inside the model, with the attention it names."""
    configs = {id(m.config): m.config for m in hf.modules() if hasattr(m, "config")}
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
