"""Attention whose value is exact, and whose backward pass is written out for blocks of query rows: no [T, S] tensor is ever kept.

It is for what flash kernels cannot do in their backward pass: a softmax gradient at another temperature (GIM, Edin et al. 2025,
arXiv:2505.17630), capped logits, logits of sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwise.maths.altered import tanh_slope
from headwise.maths.attend import attend
from headwise.maths.rows import grouped_product

BLOCK = 2**21  # attention weights held at once


class Inputs(NamedTuple):
    """What attention reads; see `attend` for shapes. The T queries are the last T of the S keys.

    Attributes:
        query, key, value: [B, H, T, d], [B, G, S, d], [B, G, S, width of values].
        mask: Bool [B or 1, 1 or H, T, S], or None for causal.
        sinks: [H], or None.
        scaling: Factor of query times key.
        softcap: Cap of the logits, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    sinks: Tensor | None
    scaling: float
    softcap: float | None


class Rows(NamedTuple):
    """Attention of a block of query rows; only the first `stop` keys can be seen by it.

    Attributes:
        place: The rows.
        stop: Keys.
        capped: [B, H, rows, stop] logits divided by the cap, in front of the tanh; None without a cap.
        weights: [B, H, rows, stop], wide dtype, softmax at temperature 1.
        soft: The softmax at the temperature of the backward pass; the very same tensor at temperature 1.
    """

    place: slice
    stop: int
    capped: Tensor | None
    weights: Tensor
    soft: Tensor


def row_blocks(given: Inputs, temperature: float = 1.0, block: int = BLOCK) -> Iterator[Rows]:
    """Attention weights of all query rows, some rows after another, in float32 (float64 for such inputs)."""
    batch, heads, total, _ = given.query.shape
    length = given.key.shape[2]
    step = max(1, block // (batch * heads * length))
    for first in range(0, total, step):
        place = slice(first, min(first + step, total))
        stop = length - total + place.stop if given.mask is None else length
        yield _weights(given, place, stop, temperature)


def _weights(given: Inputs, place: slice, stop: int, temperature: float) -> Rows:
    wide = torch.promote_types(given.query.dtype, torch.float32)
    query = given.query[:, :, place].to(wide) * given.scaling
    logits = grouped_product(query, given.key[:, :, :stop].to(wide).transpose(-1, -2))
    capped = None
    if given.softcap is not None:
        capped = logits / given.softcap
        logits = given.softcap * torch.tanh(capped)
    if given.mask is not None:
        logits = logits.masked_fill_(~given.mask[..., place, :], -torch.inf)
    else:
        own = slice(stop - query.shape[2], stop)
        logits[..., own].masked_fill_(
            torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu(1), -torch.inf
        )
    peak = logits.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(wide).min)  # a row that sees nothing gets no weights, not NaN
    sink = None
    if given.sinks is not None:
        sink = given.sinks.to(wide).view(1, -1, 1, 1)
        peak = torch.maximum(peak, sink)
    soft = logits.sub_(peak).div_(temperature).exp_()
    weights = soft if temperature == 1 else soft.square() if temperature == 2 else soft**temperature
    weights = weights / _total(weights, None if sink is None else sink - peak)
    if temperature == 1:
        return Rows(place, stop, capped, weights, weights)
    return Rows(place, stop, capped, weights, soft.div_(_total(soft, None if sink is None else (sink - peak) / temperature)))


def _total(weights: Tensor, sink: Tensor | None) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    total = total if sink is None else total + sink.exp()
    return total.clamp_(min=torch.finfo(total.dtype).tiny)


class _Tempered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Inputs, query: Tensor, key: Tensor, value: Tensor, temperature: float, cap_is_identity: bool) -> Tensor:
        ctx.given, ctx.temperature, ctx.cap_is_identity = given._replace(query=None, key=None, value=None), temperature, cap_is_identity
        ctx.save_for_backward(query, key, value)
        return attend(
            query, key, value, scaling=given.scaling, mask=given.mask, softcap=given.softcap, sinks=given.sinks
        )  # no gradients are recorded in here, so that the fastest kernel runs

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None, None, None]:
        query, key, value = ctx.saved_tensors
        given = ctx.given._replace(query=query, key=key, value=value)
        _, want_query, want_key, want_value, _, _ = ctx.needs_input_grad
        wide = torch.promote_types(query.dtype, torch.float32)
        found = Gradients(given, wide, want_query or want_key, want_value)
        gradient = gradient.transpose(1, 2)
        for rows in row_blocks(given, ctx.temperature if want_query or want_key else 1.0):
            found.add(rows, gradient[:, :, rows.place].to(wide), ctx.cap_is_identity)
        return None, *found.result(), None, None


class Gradients:
    """Sums of the gradients of query, key and value over blocks of rows.

    Args:
        given: What attention read.
        wide: Dtype of the sums.
        logits: Whether query and key have gradients.
        values: Whether values have.
    """

    def __init__(self, given: Inputs, wide: torch.dtype, logits: bool, values: bool) -> None:
        self._given, self._wide = given, wide
        self._value = torch.zeros_like(given.value, dtype=wide) if values else None
        self._query = torch.empty_like(given.query, dtype=wide) if logits else None
        self._key = torch.zeros_like(given.key, dtype=wide) if logits else None
        self._keys = given.key.to(wide)
        self._values_transposed = given.value.to(wide).transpose(-1, -2)

    def add(self, rows: Rows, gradient: Tensor, cap_is_identity: bool) -> None:
        """Add a block of rows with the gradient [B, H, rows, width of values] of their outputs."""
        given, stop = self._given, rows.stop
        if self._value is not None:
            self._value[:, :, :stop] += _per_key(rows.weights, gradient, given.key.shape[1])
        if self._query is None or self._key is None:
            return
        slopes = grouped_product(gradient, self._values_transposed[..., :stop])
        slopes -= (slopes * rows.soft).sum(dim=-1, keepdim=True)
        slopes *= rows.soft
        if rows.capped is not None:
            slopes *= tanh_slope(rows.capped) if cap_is_identity else 1 - torch.tanh(rows.capped).square()
        self._query[:, :, rows.place] = grouped_product(slopes, self._keys[:, :, :stop])
        self._key[:, :, :stop] += _per_key(slopes, given.query[:, :, rows.place].to(self._wide), given.key.shape[1])

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of query, key and value in their dtypes; None where they were not asked for."""
        given = self._given
        query = None if self._query is None else self._query.mul_(given.scaling).to(given.query.dtype)
        key = None if self._key is None else self._key.mul_(given.scaling).to(given.key.dtype)
        return query, key, None if self._value is None else self._value.to(given.value.dtype)


def _per_key(weights: Tensor, rows: Tensor, groups: int) -> Tensor:
    """[B, G, S, d]: for each key the sum of rows [B, H, R, d] by weights [B, H, R, S] over rows and the heads of its group."""
    batch, heads, count, length = weights.shape
    folded = weights.reshape(batch, groups, heads // groups * count, length)
    return folded.transpose(-1, -2) @ rows.reshape(batch, groups, heads // groups * count, rows.shape[-1])


def tempered_attention(given: Inputs, temperature: float = 1.0, cap_is_identity: bool = False) -> Tensor:
    """Softmax attention, exact in its value, with an altered gradient.

    Args:
        given: What it reads. Only query, key and value get gradients.
        temperature: The softmax hands gradients back as one at this temperature T would: with s = softmax(x / T) the gradient of the logits is
            s * (g - sum(s * g)). There is no factor 1 / T, as in the code of GIM's authors. 1: the plain gradient.
        cap_is_identity: A cap c * tanh(x / c) hands gradients back times its value over x, not times its derivative.

    Returns:
        [B, T, H, width of values].
    """
    return cast(Tensor, _Tempered.apply(given, given.query, given.key, given.value, temperature, cap_is_identity))
