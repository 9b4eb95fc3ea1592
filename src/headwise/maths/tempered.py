"""Attention whose value is exact, and whose backward pass is written out for blocks of query rows: no [T, S] tensor is ever kept.

It is for what flash kernels cannot do in their backward pass: a softmax gradient at another temperature (GIM, Edin et al. 2025,
arXiv:2505.17630), capped logits, logits of sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwise.maths.altered import tanh_slope
from headwise.maths.attend import attend
from headwise.maths.rows import grouped_product

BLOCK = 2**20  # attention weights held at once; a few of them fit into the cache of a core


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

    Totals are kept apart from what they divide: dividing small tensors by them costs less than dividing large ones.

    Attributes:
        place: The rows.
        stop: Keys.
        capped: [B, H, rows, stop] logits divided by the cap, in front of the tanh; None without a cap.
        weights: [B, H, rows, stop], wide dtype; divided by `total` they are the softmax.
        total: [B, H, rows, 1].
        soft, soft_total: The same at the temperature of the backward pass; the very same tensors at temperature 1.
    """

    place: slice
    stop: int
    capped: Tensor | None
    weights: Tensor
    total: Tensor
    soft: Tensor
    soft_total: Tensor


class Collects(Protocol):
    """Takes part in the backward pass, block by block."""

    def add(self, rows: Rows, slopes: Tensor) -> None:
        """A block of rows, and the gradients [B, H, rows, stop] at its attention weights; both are left as they are."""


def row_blocks(given: Inputs, temperature: float = 1.0, block: int = BLOCK, used: slice | None = None) -> Iterator[Rows]:
    """Attention weights of query rows, some rows after another, in float32 (float64 for such inputs). used: which rows; None for all."""
    batch, heads, total, _ = given.query.shape
    length = given.key.shape[2]
    step = max(1, block // (batch * heads * length))
    used = used or slice(0, total)
    for first in range(used.start, used.stop, step):
        place = slice(first, min(first + step, used.stop))
        stop = length - total + place.stop if given.mask is None else length
        yield _weights(given, place, stop, temperature)


def _weights(given: Inputs, place: slice, stop: int, temperature: float) -> Rows:
    wide = torch.promote_types(given.query.dtype, torch.float32)
    cooled = given.scaling if given.softcap is not None else given.scaling / temperature
    query = given.query[:, :, place].to(wide) * cooled
    logits = grouped_product(query, given.key[:, :, :stop].to(wide).transpose(-1, -2))
    capped = None
    if given.softcap is not None:
        capped = logits / given.softcap
        logits = given.softcap / temperature * torch.tanh(capped)
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
        sink = given.sinks.to(wide).view(1, -1, 1, 1) / temperature
        peak = torch.maximum(peak, sink)
        sink = sink - peak
    soft = logits.sub_(peak).exp_()
    soft_total = _total(soft, sink)
    if temperature == 1:
        return Rows(place, stop, capped, soft, soft_total, soft, soft_total)
    weights = soft.square() if temperature == 2 else soft**temperature  # exp(x) from exp(x / T)
    return Rows(place, stop, capped, weights, _total(weights, None if sink is None else sink * temperature), soft, soft_total)


def _total(weights: Tensor, sink: Tensor | None) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    total = total if sink is None else total + sink.exp()
    return total.clamp_(min=torch.finfo(total.dtype).tiny)


def rows_with_gradient(gradient: Tensor) -> slice:
    """The span of query rows of a gradient [B, H, T, d] that is not 0: in the last layer often one row."""
    used = gradient.ne(0).any(dim=-1).flatten(0, 1).any(dim=0).nonzero().flatten()
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


class _Tempered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Inputs,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        temperature: float,
        cap_is_identity: bool,
        collector: Collects | None,
    ) -> Tensor:
        ctx.rest = (given.mask, given.sinks, given.scaling, given.softcap)
        ctx.options = (temperature, cap_is_identity, collector)
        ctx.save_for_backward(query, key, value)
        # No gradients are recorded in here, so that the fastest kernel runs.
        return attend(query, key, value, scaling=given.scaling, mask=given.mask, softcap=given.softcap, sinks=given.sinks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        temperature, cap_is_identity, collector = ctx.options
        logits, values = ctx.needs_input_grad[1] or ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        found = _Gradients(Inputs(query, key, value, *ctx.rest), logits, values, cap_is_identity, collector)
        gradient = gradient.transpose(1, 2).to(found.wide)
        for rows in row_blocks(found.given, temperature if logits else 1.0, used=rows_with_gradient(gradient)):
            found.add(rows, gradient[:, :, rows.place])
        return None, *found.result(), None, None, None


class _Gradients:
    """Sums of the gradients of query, key and value over blocks of rows; `logits` and `values`: whether they are wanted."""

    def __init__(self, given: Inputs, logits: bool, values: bool, cap_is_identity: bool, collector: Collects | None) -> None:
        self.given, self.wide = given, torch.promote_types(given.query.dtype, torch.float32)
        self._cap_is_identity, self._collector = cap_is_identity, collector
        self._value = torch.zeros_like(given.value, dtype=self.wide) if values else None
        self._query = torch.zeros_like(given.query, dtype=self.wide) if logits else None
        self._key = torch.zeros_like(given.key, dtype=self.wide) if logits else None
        self._keys = given.key.to(self.wide)
        self._values = given.value.to(self.wide).transpose(-1, -2)

    def add(self, rows: Rows, gradient: Tensor) -> None:
        """Add a block of rows with the gradient [B, H, rows, width of values] of their outputs."""
        given, stop, groups = self.given, rows.stop, self.given.key.shape[1]
        if self._value is not None:
            self._value[:, :, :stop] += _per_key(rows.weights, gradient / rows.total, groups)
        if self._query is None and self._collector is None:
            return
        slopes = grouped_product(gradient, self._values[..., :stop])
        if self._collector is not None:
            self._collector.add(rows, slopes)
        if self._query is None or self._key is None:
            return
        slopes *= rows.soft
        slopes.addcmul_(rows.soft, slopes.sum(dim=-1, keepdim=True) / rows.soft_total, value=-1)
        if rows.capped is not None:
            slopes *= tanh_slope(rows.capped) if self._cap_is_identity else 1 - torch.tanh(rows.capped).square()
        self._query[:, :, rows.place] = grouped_product(slopes, self._keys[:, :, :stop]) / rows.soft_total
        self._key[:, :, :stop] += _per_key(slopes, given.query[:, :, rows.place].to(self.wide) / rows.soft_total, groups)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of query, key and value in their dtypes; None where they were not asked for."""
        given = self.given
        query = None if self._query is None else self._query.mul_(given.scaling).to(given.query.dtype)
        key = None if self._key is None else self._key.mul_(given.scaling).to(given.key.dtype)
        return query, key, None if self._value is None else self._value.to(given.value.dtype)


def _per_key(weights: Tensor, rows: Tensor, groups: int) -> Tensor:
    """[B, G, S, d]: for each key the sum of rows [B, H, R, d] by weights [B, H, R, S] over rows and the heads of its group."""
    batch, heads, count, length = weights.shape
    folded = weights.reshape(batch, groups, heads // groups * count, length)
    return folded.transpose(-1, -2) @ rows.reshape(batch, groups, heads // groups * count, rows.shape[-1])


def tempered_attention(
    given: Inputs, temperature: float = 1.0, cap_is_identity: bool = False, collector: Collects | None = None
) -> Tensor:
    """Softmax attention, exact in its value, with an altered gradient.

    Args:
        given: What it reads. Only query, key and value get gradients.
        temperature: The softmax hands gradients back as one at this temperature T would: with s = softmax(x / T) the gradient of the logits is
            s * (g - sum(s * g)). There is no factor 1 / T, as in the code of GIM's authors. 1: the plain gradient.
        cap_is_identity: A cap c * tanh(x / c) hands gradients back times its value over x, not times its derivative.
        collector: Sees every block of the backward pass.

    Returns:
        [B, T, H, width of values].
    """
    found = _Tempered.apply(  # type: ignore[no-untyped-call]
        given, given.query, given.key, given.value, temperature, cap_is_identity, collector
    )
    return cast(Tensor, found)
