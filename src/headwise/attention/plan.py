"""The plan: what the attention of one model does besides attention while a `with` block is open; and the one attention function that runs it.

The function, and the mask function that must go with it, are *added* to those of transformers under a name of our own; no entry is replaced and
no class is patched. Without a registered mask function transformers would pass no mask at all, also for padded batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

from headwise.attention.call import (
    Attends,
    Begins,
    Call,
    ChoosesKeys,
    EditsInputs,
    EditsOutput,
    KeyProvider,
    Looks,
    Pass,
    Step,
    Whole,
)
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model, as_model, check_ids, transformers_model

NAME = "headwise"


@dataclass
class Plan:
    """The steps of one attached model; lives as long as the outermost `with` block.

    Attributes:
        model: The model.
        choosing, inputs, attending, outputs, looking, beginning: Steps by stage, in the order in which their blocks were opened.
        before: Positions in front of the pass that is running; None outside of the whole model.
        keeper: What a compressed cache does after each layer of that pass.
        hooks: Handles of the hooks that call `enter` and `leave`.
        depth: How many blocks are open; the last one to end takes the plan away.
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
        """Hook: a pass of the whole model begins.

        Args:
            hf: The model that runs.
            inputs: Its positional arguments.
            options: Its named arguments.

        Raises:
            HeadwiseError: A compressed cache of another model among them, an id that the model does not know, or what a step refuses at
                its beginning.
        """
        self.called.clear()
        kind: Any = type(hf)
        given = dict(zip(_parameters(kind), inputs, strict=False)) | options
        own = next((value for value in given.values() if isinstance(value, Cache)), None)
        first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None  # wrappers do not name what they take
        ids = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), first)
        if ids is not None and ids.ndim == 2 and ids.shape[1] > 1 and not ids.is_floating_point():
            # A single token is the model's own choice: nothing is looked at while it decodes.
            check_ids(self.model.hf, *(int(bound) for bound in ids.aminmax()))
        self.before = own.get_seq_length() if own is not None else 0
        mask = given.get("attention_mask")
        begin = getattr(own, "begin", None)
        self.keeper = begin(hf, ids, mask) if begin else None
        if self.beginning:
            now = Pass(self.before, ids, mask, own is not None, getattr(own, "ends_prompt", None))
            for step in self.beginning:
                step.begin(now)

    def leave(self, hf: nn.Module, inputs: Any, output: Any) -> None:
        """Hook: a pass has ended.

        Args:
            hf: The model that ran.
            inputs: Not used.
            output: What it gave; None if it failed.

        Raises:
            HeadwiseError: Layers never came to our attention, so what was seen or changed would be wrong without a word.
        """
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
        """Position of a layer's first query row.

        Its keys alone do not tell: caches of transformers drop what sliding windows cannot see.

        Args:
            layer: Decoder layer.
            rows: Query rows of the call, T.
            source: Where its keys come from.

        Raises:
            HeadwiseError: A part of the model is called over a cache, and the layer has a sliding window.
        """
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
    """The plan and layer index of an attention module. Raises `HeadwiseError` outside of all blocks."""
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


def register() -> None:
    """Make the name known (idempotent)."""
    AttentionInterface.register(NAME, headwise_attention)
    AttentionMaskInterface.register(NAME, headwise_mask)


def headwise_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | KeyProvider,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as the pipeline of the model's plan.

    Args:
        module: The attention module that asks.
        query: [B, H, T, d], after position encoding.
        key: [B, G, S, d] as transformers passes it, or what a cache of ours hands over in place of keys and values.
        value: [B, G, S, d], or the same as `key`.
        attention_mask: [B or 1, 1, T, S], or None for causal.
        scaling: Factor of query times key; None: 1 / sqrt(d).
        dropout: Must be 0.
        softcap: Cap of the logits; see `row_statistics`.
        s_aux: Sink logits [H].

    Returns:
        ([B, T, H, d], None).
    """
    no_dropout(dropout)
    plan, layer = plan_for_module(module)
    source = Whole((key,), (value,), attention_mask) if isinstance(key, Tensor) else key
    call = Call(plan, layer, query, source, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    for chooser in plan.choosing:
        call.source = chooser.choose_keys(call)
    for edit in plan.inputs:
        call.query, call.source = edit.edit_inputs(call)
    for step in plan.looking:
        step.look(call)
    if plan.keeper:
        plan.keeper.look(call)
    return call.output, None


def headwise_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **rest: Any,
) -> Tensor | None:
    """The mask of headwise's attention; transformers calls it with the arguments of its own mask functions.

    Args:
        q_length: Query rows T.
        kv_length: Keys S.
        q_offset: Position of the first query row.
        kv_offset: Position of the first key.
        attention_mask: [B, positions] bool, False for padding.
        local_size: Sliding window or chunk of the layer, None for full attention.
        allow_is_causal_skip: Whether None may be given.
        rest: Goes to the mask function of transformers as it is.

    Returns:
        Bool [B, 1, T, S], True = visible, or None where plain causal attention over all keys is meant, also for T > 1 over a past.
    """
    whole = kv_offset == 0 and int(q_offset) + q_length == kv_length and (local_size is None or kv_length < local_size)
    unpadded = attention_mask is None or bool(attention_mask[:, :kv_length].all())
    if allow_is_causal_skip and whole and unpadded:
        return None
    mask: Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        **rest,
    )
    return mask if mask is None or mask.dtype == torch.bool else mask.bool()


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
    """Raise `HeadwiseError` for attention dropout, which would make every statistic random."""
    if dropout:
        raise HeadwiseError(f"the model is in training mode with attention dropout {dropout:g}; call model.eval() or set it to 0")
