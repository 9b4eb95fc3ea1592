"""Relevance of attention weights per source token, without an attention matrix.

With g the gradient at the output z of a head, the gradient at its weight A_ij is dA_ij = g_i . v_j, and sum_j A_ij dA_ij = z_i . g_i. So
A_ij dA_ij can be made again for a few rows at a time from query, key, value and g (Kahardipraja et al. 2025, arXiv:2505.15807, section on task and
retrieval heads; the sum over rows is all of `rows`, the positive part is that of each pair).
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import grouped_product
from headwise.maths.tempered import BLOCK, Inputs, Rows, row_blocks, rows_with_gradient

POSITIVE = ("pair", "token", "none")


class SourceSums:
    """Sums of A_ij dA_ij per source token over blocks of rows; a collector of `tempered_attention`.

    Args:
        given: What attention reads.
        rows: [B, T] bool, which query rows are summed; None for all.
        columns: [J] int64 in ascending order, the source tokens that are wanted; the others get 0. None for all.
        positive: `pair`: only positive A_ij dA_ij count (the paper's R+). `token`: the sum over rows is cut at 0. `none`: signed.

    Raises:
        HeadwiseError: An unknown `positive`.
    """

    def __init__(self, given: Inputs, rows: Tensor | None = None, columns: Tensor | None = None, positive: str = "pair") -> None:
        if positive not in POSITIVE:
            raise HeadwiseError(f"unknown positive part {positive!r}; use {', '.join(POSITIVE)}")
        self._rows, self._columns, self._positive = rows, columns, positive
        batch, heads, _, _ = given.query.shape
        wide = torch.promote_types(given.query.dtype, torch.float32)
        self._found = torch.zeros((batch, heads, given.key.shape[2]), dtype=wide, device=given.query.device)

    def add(self, rows: Rows, slopes: Tensor) -> None:
        """Add a block with the gradients [B, H, rows, stop] at its attention weights."""
        scale = rows.total.reciprocal()
        if self._rows is not None:
            scale = scale * self._rows[:, None, rows.place, None]
        where = slice(0, rows.stop) if self._columns is None else self._columns[self._columns < rows.stop]
        own = rows.weights[..., where] * slopes[..., where]
        own = own.clamp_(min=0) if self._positive == "pair" else own
        self._found[..., where] += (scale.transpose(-1, -2) @ own).squeeze(-2)  # the sum over rows, each divided by its total

    def clear(self) -> None:
        """Begin again, for another backward pass."""
        self._found.zero_()

    def result(self) -> Tensor:
        """[B, H, S] float32 (float64 for such inputs)."""
        return self._found.clamp(min=0) if self._positive == "token" else self._found


@torch.no_grad()
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
        rows: See `SourceSums`.
        columns: See there.
        positive: See there.
        block: Attention weights held at once.

    Returns:
        [B, H, S] float32 (float64 for such inputs).

    Raises:
        HeadwiseError: An unknown `positive`.
    """
    sums = SourceSums(given, rows, columns, positive)
    wide = torch.promote_types(given.query.dtype, torch.float32)
    slopes = gradient.transpose(1, 2).to(wide)
    if rows is not None:
        slopes = slopes * rows[:, None, :, None]
    values = given.value.to(wide).transpose(-1, -2)
    for one in row_blocks(given, block=block, used=rows_with_gradient(slopes)):
        sums.add(one, grouped_product(slopes[:, :, one.place], values[..., : one.stop]))
    return sums.result()
