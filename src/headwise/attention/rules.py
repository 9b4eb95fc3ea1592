"""Rules of attribution: which local gradients of one model are altered while a block is open. Hooks on instances only; no class is patched.

Each rule is a choice in four places: norms, activations, products of two activations (gate * up, weights * values, query * key, router * expert)
and the softmax of attention.

Patent notice: layer-wise relevance propagation (rules `cp_lrp` and `attnlrp`) may be covered by patents (US 12,061,966; EP 3 271 863). This is our
own implementation from published formulas; it gives no rights under anybody's patents. No patent is known to us for `gradient` and `gim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError, UnsupportedModelError
from headwise.maths.altered import Slope, frozen_norm, gated_product, scaled_gradient, slope_of, with_slope
from headwise.models.model import Model, follow

PATENT_NOTICE = (
    "Layer-wise relevance propagation (rules cp_lrp and attnlrp) may be covered by patents (US 12,061,966; EP 3 271 863). headwise implements "
    "published formulas; its licence gives no rights under patents of others."
)


@dataclass(frozen=True)
class Rule:
    """How one backward pass is altered.

    Attributes:
        name: What users call it.
        norms_frozen: The divisor of a norm counts as a constant.
        activation: `derivative`, or `identity`: f(x) / x.
        gate_constant: Of activation(gate) * up only `up` gets a gradient, of router * expert only the expert. MLPs without a gate: `identity`.
        product: Both factors of a product of two activations get so much of their gradient; 0.5 halves what is counted twice.
        weights_constant: Attention weights count as constants: query and key get no gradient.
        temperature: Temperature at which the softmax of attention hands gradients back.
        patented: Whether `PATENT_NOTICE` applies.
    """

    name: str
    norms_frozen: bool = True
    activation: str = "derivative"
    gate_constant: bool = False
    product: float = 1.0
    weights_constant: bool = False
    temperature: float = 1.0
    patented: bool = False


RULES = {
    rule.name: rule
    for rule in (
        Rule("gradient", norms_frozen=False),
        Rule("gim", product=0.5, temperature=2.0),
        Rule("cp_lrp", activation="identity", gate_constant=True, weights_constant=True, patented=True),
        Rule("attnlrp", activation="identity", product=0.5, patented=True),
    )
}
DEFAULT = "gim"


def rule_of(name: str) -> Rule:
    """A rule by its name. Raises `HeadwiseError` for an unknown one."""
    if not isinstance(name, str) or name not in RULES:
        raise HeadwiseError(f"unknown rule of attribution {name!r}; use {', '.join(RULES)}")
    return RULES[name]


@contextmanager
def altered(model: Model, rule: Rule) -> Iterator[None]:
    """Inside the block norms, activations and products of one model hand back the gradients of a rule. Values do not change by a bit.

    Attention itself is altered by a step of the pipeline (`headwise.attention.attribute`).

    Args:
        model: The model.
        rule: Of `RULES`.

    Raises:
        UnsupportedModelError: The model has a part that the rule says nothing about.
    """
    with ExitStack() as undo:
        if rule.name != "gradient":
            if model.is_hybrid:
                without = sorted(set(range(model.heads.shape[0])) - set(model.modules))
                raise UnsupportedModelError(
                    f"rule {rule.name!r} says nothing about linear attention, which layers {', '.join(map(str, without))} of {model.name} have; "
                    f"use rule 'gradient'"
                )
            for norm in _norms(model, rule):
                undo.callback(norm.register_forward_hook(_norm_hook(norm)).remove)
        for layer in range(model.heads.shape[0]):
            _alter_mlp(model, layer, rule, undo)
        yield


# ---- norms


class Norm(NamedTuple):
    """What a norm computes: gain * (x - mean, if centred) / sqrt(variance + eps) (+ bias)."""

    gain: Tensor | None
    eps: float
    centred: bool


def _norms(model: Model, rule: Rule) -> list[nn.Module]:
    """All norms of a model that a gradient can reach, each once."""
    names = ["attention_norm", "mlp_norm", "attention_end_norm", "mlp_end_norm"]
    found = [model.part(name, layer) for name in names for layer in range(model.heads.shape[0])]
    if not rule.weights_constant:
        found += [model.part(name, layer) for name in ("query_norm", "key_norm") for layer in model.modules]
    return list({id(norm): norm for norm in [*found, model.final_norm] if norm is not None}.values())


@torch.no_grad()
def recognised(norm: nn.Module) -> Norm:
    """What a norm computes, found by comparing it with the known kinds on a few numbers.

    Raises:
        HeadwiseError: Its weights are not finite.
        UnsupportedModelError: It is of no kind that is known.
    """
    own: Any = norm
    weight, bias = getattr(own, "weight", None), getattr(own, "bias", None)
    for part in (weight, bias):
        if isinstance(part, Tensor) and part.device.type != "meta" and not torch.isfinite(part).all():
            raise HeadwiseError(
                f"the weights of a norm {type(norm).__name__} are not finite (NaN or infinity); use another checkpoint"
            )
    eps = getattr(own, "eps", getattr(own, "variance_epsilon", None))
    if weight is not None and weight.device.type != "meta" and eps is not None:
        x = torch.linspace(-2, 3, weight.numel(), device=weight.device, dtype=weight.dtype).view(1, 1, -1) ** 3 + 0.5
        try:
            value = own(x).float()
        except (RuntimeError, ValueError):  # made for numbers in another order
            value = torch.full((), torch.nan)
        close = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 3e-2
        for centred in (False, True):
            for gain in (weight, 1 + weight.float()):
                kind = Norm(gain.detach(), float(eps), centred)
                if torch.allclose(_normed(x.float(), kind, bias), value, atol=close, rtol=close):
                    return kind
    raise UnsupportedModelError(
        f"the norm {type(norm).__name__} is of no kind that a rule of attribution knows (RMSNorm, LayerNorm, weights on this machine); "
        f"use rule 'gradient'"
    )


def _normed(x: Tensor, kind: Norm, bias: Tensor | None) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True) if kind.centred else x
    found = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + kind.eps)
    found = found if kind.gain is None else found * kind.gain.float()
    return found if bias is None else found + bias.float()


def _norm_hook(norm: nn.Module) -> Callable[..., Tensor]:
    kind = recognised(norm)

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return frozen_norm(inputs[0], output, kind.gain, kind.eps, kind.centred) if inputs[0].requires_grad else output

    return hook


# ---- MLPs


def _alter_mlp(model: Model, layer: int, rule: Rule, undo: ExitStack) -> None:
    """Alter the activation and the products in the MLP, or in the experts, of one layer."""
    family, mlp = model.family, model.part("mlp", layer)
    experts = getattr(mlp, family.experts, None) if family.experts else None
    if rule.name == "gradient":
        if experts is None and family.product:
            _keep_less(follow(mlp, family.activation), follow(mlp, family.product), None, undo)
        return
    if experts is not None:
        undo.callback(experts.register_forward_pre_hook(partial(_experts_hook, rule)).remove)
    if experts is not None and not family.activation:
        _alter_written_gate(experts, rule, undo)
        return
    activation = follow(experts if experts is not None else mlp, family.activation)
    gated = experts is not None or bool(family.product)
    slope = _slope(activation) if rule.activation == "identity" and not (rule.gate_constant and gated) else None
    if rule.gate_constant and gated:
        undo.callback(activation.register_forward_hook(lambda _, inputs, output: output.detach()).remove)
    elif slope is not None:
        undo.callback(activation.register_forward_hook(partial(_activation_hook, slope)).remove)
    if experts is None and family.product and rule.product != 1:
        projection = follow(mlp, family.product)
        _keep_less(activation, projection, slope, undo)
        undo.callback(projection.register_forward_hook(partial(_product_hook, rule.product)).remove)


def _keep_less(activation: nn.Module, projection: nn.Module, slope: Slope | None, undo: ExitStack) -> None:
    """Between forward and backward keep gate and up alone, two thirds of what an MLP would keep: the activation is cheap to make again.

    Args:
        activation: What the gate goes through.
        projection: What reads the product of that and up.
        slope: The activation hands back gradients by it; None: its derivative.
        undo: Takes the hooks away.
    """
    latest: list[tuple[Tensor, Tensor]] = []

    def again(gate: Tensor) -> Tensor:
        value: Tensor = activation.forward(gate)  # without hooks
        return value if slope is None else with_slope(gate, value, slope)

    def remember(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        latest[:] = [(inputs[0], output)]

    def replace(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        gate, active = latest.pop() if latest else (None, None)
        return inputs if gate is None or active is None else (gated_product(inputs[0], gate, active, again), *inputs[1:])

    undo.callback(activation.register_forward_hook(remember).remove)
    undo.callback(projection.register_forward_pre_hook(replace).remove)


def _slope(activation: Any) -> Slope:
    slope = slope_of(activation)
    if slope is None:
        raise UnsupportedModelError(
            f"the activation {type(activation).__name__} has no closed form of f(x) / x here; use rule 'gradient' or 'gim'"
        )
    return slope


def _activation_hook(slope: Slope, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return with_slope(inputs[0], output, slope)


def _product_hook(factor: float, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Half of what comes back through the product goes to each of its factors.

    Halved once, behind the projection that reads it: that is linear, and its result is narrower.
    """
    return scaled_gradient(output, factor)


def _experts_hook(rule: Rule, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Experts are called with (hidden, which, weights).

    Hidden states go through two products, activation(gate) * up and router * expert, and both factors are constants, so it makes no difference
    that they are applied at the entrance.
    """
    hidden, which, weights = inputs
    return scaled_gradient(hidden, rule.product**2), which, scaled_gradient(weights, 0.0 if rule.gate_constant else rule.product)


class _WrittenGate(torch.autograd.Function):
    """gpt-oss: (up + 1) * gate * sigmoid(alpha * gate), gate and up interleaved and clamped; value given, gradient of the identity rules."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, value: Tensor, alpha: float, limit: float, gate_constant: bool) -> Tensor:
        ctx.alpha, ctx.limit, ctx.gate_constant = alpha, limit, gate_constant
        ctx.save_for_backward(both)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (both,) = ctx.saved_tensors
        gate, up = both[..., ::2], both[..., 1::2]
        top, held = gate.clamp(max=ctx.limit), up.clamp(-ctx.limit, ctx.limit)
        share = torch.sigmoid(ctx.alpha * top)
        found = torch.empty_like(both)
        # A clamp hands back value / input; what is clamped lies beyond the limit, so nothing small divides.
        found[..., ::2] = 0 if ctx.gate_constant else gradient * (held + 1) * share * torch.where(gate > top, top / gate, 1.0)
        found[..., 1::2] = gradient * top * share * torch.where(up == held, 1.0, held / up)
        return found, None, None, None, None


def _alter_written_gate(experts: Any, rule: Rule, undo: ExitStack) -> None:
    """Put a gate of our own in front of the class's, on this instance."""
    if rule.activation != "identity":
        return
    original = experts._apply_gate
    alpha, limit = float(experts.alpha), float(experts.limit)

    def apply_gate(both: Tensor) -> Tensor:
        with torch.no_grad():
            value = original(both)
        return _WrittenGate.apply(both, value, alpha, limit, rule.gate_constant)  # type: ignore[no-any-return, no-untyped-call]

    experts._apply_gate = apply_gate
    undo.callback(experts.__dict__.pop, "_apply_gate")
