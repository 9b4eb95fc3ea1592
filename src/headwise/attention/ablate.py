"""Ablation of heads in three modes and two scopes, one variant per batch row if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.plan import Call, attached, device_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads, HeadSet

MODES = ("zero", "uniform", "mean")
SCOPES = ("all", "answer")


class Ablation:
    """What happens to the chosen heads.

    mask [V or 1, L, H] bool: V variants, one per batch row, or one for all. mode: `zero` (output 0), `uniform` (query 0: the
    mean of the visible values), `mean` (means [L, H, d]). answer_from: first position of scope `answer`; None = the last position
    of a pass without a past and every later one. scope `all` is `answer_from=0`.
    """

    def __init__(self, mask: Tensor, mode: str, scope: str, answer_from: int | None, means: Tensor | None) -> None:
        if mode not in MODES:
            raise HeadwiseError(f"unknown ablation mode {mode!r}; use {', '.join(MODES)}")
        if scope not in SCOPES:
            raise HeadwiseError(f"unknown ablation scope {scope!r}; use {', '.join(SCOPES)}")
        if (mode == "mean") != (means is not None):
            raise HeadwiseError("mode 'mean' needs calibrated means (see head_means), and only mode 'mean' takes them")
        self._mask, self._mode, self._means = mask, mode, means
        self._from = 0 if scope == "all" else answer_from
        self._layers = set(mask.any(dim=2).any(dim=0).nonzero().flatten().tolist())

    def query(self, layer: int, query: Tensor, start: int) -> Tensor:
        """Zero the query of the chosen heads in mode `uniform`."""
        if self._mode != "uniform" or layer not in self._layers:
            return query
        rows = self._rows(query.shape[2], start, query.device).view(1, 1, -1, 1)
        return query.masked_fill(self._mask[:, layer, :, None, None] & rows, 0)

    def output(self, call: Call, output: Tensor, start: int) -> Tensor:
        """Replace the output of the chosen heads in modes `zero` and `mean`."""
        if self._mode == "uniform" or call.layer not in self._layers:
            return output
        rows = self._rows(output.shape[1], start, output.device).view(1, -1, 1, 1)
        chosen = self._mask[:, call.layer, None, :, None] & rows
        if self._means is None:
            return output.masked_fill(chosen, 0)
        return torch.where(chosen, self._means[call.layer].to(output.dtype), output)

    def _rows(self, rows: int, start: int, device: torch.device) -> Tensor:
        """[T] bool: rows inside the scope."""
        first = self._from
        if first is None:
            first = 0 if start else rows - 1
        return torch.arange(start, start + rows, device=device) >= first


@contextmanager
def ablate(
    model: Any,
    heads: Heads | Sequence[HeadSet],
    mode: str = "zero",
    scope: str = "all",
    answer_from: int | None = None,
    means: Tensor | None = None,
) -> Iterator[None]:
    """Run the model without some heads inside the block.

    heads: one set (see `HeadSet.of`: `[(5, 6)]` will do), or one `HeadSet` per batch row (every pass inside the block must then have that many
    rows; a set may be empty).
    mode, scope, answer_from, means: see `Ablation`. Works in forward passes and in `model.generate`.
    """
    per_row = isinstance(heads, list | tuple) and bool(heads) and all(isinstance(chosen, HeadSet) for chosen in heads)
    given: Any = heads if per_row else [heads]
    with attached(model) as plan:
        sets = [plan.model.check(chosen) for chosen in given]
        mask = torch.from_numpy(np.stack([chosen.mask() for chosen in sets])).to(device_of(plan.model.hf))
        if means is not None:
            means = means.to(mask.device)
        edit = Ablation(mask, mode, scope, answer_from, means)
        plan.edits.append(edit)
        try:
            yield
        finally:
            plan.edits.remove(edit)
