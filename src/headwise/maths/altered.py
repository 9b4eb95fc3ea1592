"""Operations whose value stays what it is and whose gradient is altered: the building blocks of relevance by one backward pass.

Layer-wise relevance propagation and its kin can be written as *activation times gradient* once some local gradients are altered (Achtibat et al.
2024, arXiv:2402.05602; Arras et al. 2025, arXiv:2502.15886; Edin et al. 2025, arXiv:2505.17630). Nothing here divides by an activation: f(x) / x is
written in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Slope = Callable[[Tensor], Tensor]
CACHED = 2**17  # numbers of a block whose few copies stay in the cache of a core


def tanh_slope(x: Tensor) -> Tensor:
    """tanh(x) / x, 1 at 0, without a loss of digits near 0 (the first three terms of its series are exact to 1e-8 below 0.03)."""
    square = x * x
    near = square < 1e-3
    safe = torch.where(near, torch.ones_like(x), x)
    return torch.where(near, 1 - square / 3 + square * square * (2 / 15), torch.tanh(safe) / safe)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# f(x) / x of the activations that are known (card of the method, section 3.1).
SLOPES: dict[str, Slope] = {
    "silu": torch.sigmoid,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: (x > 0).to(x.dtype),
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
    "relu_squared": lambda x: x.clamp(min=0),
}


def slope_of(activation: Callable[[Tensor], Tensor]) -> Slope | None:
    """Closed form of f(x) / x for an activation, recognised by what it computes; None for one that is not known."""
    x = torch.linspace(-6, 6, 241)
    with torch.no_grad():
        value = activation(x.clone())
        return next((slope for slope in SLOPES.values() if torch.allclose(slope(x) * x, value, atol=2e-6, rtol=1e-5)), None)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The same tensor; its gradient is multiplied by `factor`. A factor of 0 cuts it off."""
    if factor == 1:
        return x
    return x.detach() if factor == 0 else cast(Tensor, _Scaled.apply(x, factor))  # type: ignore[no-untyped-call]


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Slope) -> Tensor:
        ctx.slope = slope
        ctx.save_for_backward(x)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.slope(x), None, None


def with_slope(x: Tensor, value: Tensor, slope: Slope) -> Tensor:
    """`value` = f(x), whose derivative counts as `slope(x)`: f(x) / x is the identity rule, by which relevance goes through f as it is."""
    return cast(Tensor, _Sloped.apply(x, value.detach(), slope))  # type: ignore[no-untyped-call]


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, value: Tensor, activation: Slope) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gate, up = ctx.saved_tensors
        found = torch.empty_like(gate), torch.empty_like(up)
        step = gate.shape[-2] if gate.device.type != "cpu" else max(1, CACHED // (gate.numel() // gate.shape[-2]))
        for rows in range(0, gate.shape[-2], step):
            own, other, given = (table[..., rows : rows + step, :] for table in (gate, up, gradient))
            with torch.enable_grad():
                own = own.detach().requires_grad_(True)
                active = ctx.activation(own)
            found[0][..., rows : rows + step, :] = torch.autograd.grad(active, own, given * other)[0]
            torch.mul(given, active.detach(), out=found[1][..., rows : rows + step, :])
        return *found, None, None


def gated_product(product: Tensor, gate: Tensor, active: Tensor, activation: Slope) -> Tensor:
    """The same product `activation(gate) * up` with the same gradient, for which `activation(gate)` is made again instead of being kept.

    Args:
        product: [..., T, n].
        gate: [..., T, n].
        active: `activation(gate)`, as it went into the product.
        activation: Makes it again.

    Returns:
        `product` as it is where it was not made of `active` and one other tensor that both have gradients.
    """
    node: Any = product.grad_fn
    if type(node).__name__ != "MulBackward0" or node._saved_self is None or node._saved_other is None:
        return product
    where = [factor.data_ptr() == active.data_ptr() for factor in (node._saved_self, node._saved_other)]
    up = node._saved_other if where[0] else node._saved_self
    if sum(where) != 1 or not (gate.shape == up.shape == product.shape and gate.requires_grad and up.requires_grad):
        return product
    return cast(Tensor, _GatedProduct.apply(gate, up, product.detach(), activation))  # type: ignore[no-untyped-call]


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, inverse: Tensor, gain: Tensor | None, centred: bool) -> Tensor:
        ctx.centred, ctx.dtype = centred, x.dtype
        ctx.save_for_backward(inverse, gain)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        inverse, gain = ctx.saved_tensors
        found = gradient * inverse
        if gain is not None:
            found = found * gain
        if ctx.centred:
            found = found - found.mean(dim=-1, keepdim=True)
        return found.to(ctx.dtype), None, None, None, None


def frozen_norm(x: Tensor, value: Tensor, gain: Tensor | None, eps: float, centred: bool) -> Tensor:
    """A norm's output whose divisor counts as a constant (the identity rule for norms; "norm freezing" in GIM).

    Args:
        x: [..., n], what the norm reads.
        value: [..., n], what it gave.
        gain: [n], or None for 1.
        eps: Added to the variance.
        centred: The mean is subtracted first (LayerNorm). That is linear and keeps its gradient; only the standard deviation is frozen.

    Returns:
        `value`, bit for bit.
    """
    with torch.no_grad():
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if centred:
            variance = wide.var(dim=-1, keepdim=True, correction=0)
        else:
            variance = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]
        inverse = torch.rsqrt(variance + eps)
    return cast(Tensor, _FrozenNorm.apply(x, value.detach(), inverse, None if gain is None else gain.detach(), centred))  # type: ignore[no-untyped-call]
