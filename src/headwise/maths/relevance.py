"""Relevance of attention weights per source token, without an attention matrix.

With g the gradient at the output z of a head, the gradient at its weight A_ij is dA_ij = g_i . v_j, and sum_j A_ij dA_ij = z_i . g_i. So the relevance
A_ij dA_ij can be made again for a few rows at a time from query, key, value and g (Kahardipraja et al. 2025, arXiv:2505.15807, section on task and
retrieval heads; the sum over rows is all of `rows`, the positive part is that of each pair).
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import grouped_product
from headwise.maths.tempered import BLOCK, Inputs, row_blocks

POSITIVE = ("pair", "token", "none")


def source_relevance(
    given: Inputs,
    gradient: Tensor,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    positive: str = "pair",
    block: int = BLOCK,
) -> Tensor:
    """Relevance that each head takes from each source token: rho_j = sum_i A_ij (g_i . v_j).

    Args:
        given: What attention read.
        gradient: [B, T, H, width of values], gradient at the heads' outputs.
        rows: [B, T] bool, which query rows are summed; None for all.
        columns: [J] int64 in ascending order, the source tokens that are wanted; the others get 0. None for all.
        positive: `pair`: only positive A_ij dA_ij count (the paper's R+). `token`: the sum over rows is cut at 0. `none`: signed.
        block: Attention weights held at once.

    Returns:
        [B, H, S] float32 (float64 for such inputs).

    Raises:
        HeadwiseError: An unknown `positive`.
    """
    if positive not in POSITIVE:
        raise HeadwiseError(f"unknown positive part {positive!r}; use {', '.join(POSITIVE)}")
    wide = torch.promote_types(given.query.dtype, torch.float32)
    slopes = gradient.transpose(1, 2).to(wide)
    if rows is not None:
        slopes = slopes * rows[:, None, :, None]
    # Rows without a gradient add nothing: those behind an explained token, and all but one for `rows` = the last one.
    used = slopes.ne(0).any(dim=-1).any(dim=1).any(dim=0).nonzero().flatten()
    batch, heads, total, _ = given.query.shape
    length = given.key.shape[2]
    found = torch.zeros((batch, heads, length), dtype=wide, device=slopes.device)
    if not len(used):
        return found
    first, stop = int(used[0]), int(used[-1]) + 1
    part = _rows_of(given, first, stop)
    values = given.value.to(wide).transpose(-1, -2)
    for one in row_blocks(part, block=block):
        where = slice(0, one.stop) if columns is None else columns[columns < one.stop]
        own = grouped_product(slopes[:, :, first + one.place.start : first + one.place.stop], values[..., where])
        own *= one.weights[..., where]
        found[..., where] += (own.clamp_(min=0) if positive == "pair" else own).sum(dim=2)
    return found.clamp_(min=0) if positive == "token" else found


def _rows_of(given: Inputs, first: int, stop: int) -> Inputs:
    """The same attention for query rows [first, stop) only."""
    query = given.query[:, :, first:stop]
    if given.mask is not None:
        return given._replace(query=query, mask=given.mask[..., first:stop, :])
    seen = given.key.shape[2] - given.query.shape[2] + stop
    return given._replace(query=query, key=given.key[:, :, :seen], value=given.value[:, :, :seen])


def value_relevance(value: Tensor, gradient: Tensor) -> Tensor:
    """The signed sum over all rows from the kernel's own gradient: sum_i A_ij dA_ij = v_j . dV_j.

    Args:
        value: [B, H, S, width of values], one per query head.
        gradient: The same shape: gradient at those values.

    Returns:
        [B, H, S] float32 (float64 for such inputs).
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    return (value.to(wide) * gradient.to(wide)).sum(dim=-1)
