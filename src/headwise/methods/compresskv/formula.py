"""Formulas of CompressKV (Lin et al. 2025, arXiv:2508.02401): the semantic score of heads (eq. 5) and the errors of layers (eq. 6-12)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads.errors import HeadwiseError

EPSILON = 1e-6  # added to the norm of a full output


def matching_steps(emitted: Tensor, answer_ids: Tensor) -> Tensor:
    """Steps that say a token of the answer span. emitted [T], answer_ids [A] int64; returns bool [T].

    A step counts once, however often its token occurs in the span.
    """
    return torch.isin(emitted, answer_ids)


def semantic_score(mass: Tensor, matching: Tensor) -> Tensor:
    """Attention mass on the whole answer span, summed over the matching steps: [...], from 0 to the number of those steps.

    mass [..., T] float: share of the row that predicts step t which falls on the span. matching [T] bool.
    """
    return mass[..., matching].sum(dim=-1)


def semantic_lift(mass: Tensor, matching: Tensor, answer: int, prompt: int) -> Tensor:
    """Mean mass over the matching steps divided by `answer` / `prompt`, the share of an even look over the prompt. Shapes as above.

    answer, prompt: lengths in tokens. 1 is no preference; unlike the score it compares across spans and prompts of different length.
    NaN if no step matches.
    """
    return mass[..., matching].mean(dim=-1) * prompt / answer


def row_errors(kept: Tensor, full: Tensor) -> Tensor:
    """Relative errors |kept - full| / (|full| + epsilon) of rows [..., T, d], summed over the rows: [...] float32."""
    full = full.float()
    ratios: Tensor = (kept.float() - full).norm(dim=-1) / (full.norm(dim=-1) + EPSILON)
    return ratios.sum(dim=-1)


def layer_shares(errors: NDArray[np.float64], datasets: Sequence[str]) -> tuple[float, ...]:
    """Share of each layer in the errors [prompt, layer]: sums per data set, divided by their total over layers, then the mean over data sets.

    datasets: one name per prompt. NaN (layers that are not compressed) gives 0. Raises `HeadwiseError` for a data set without any error.
    """
    found, names = np.nan_to_num(errors), np.asarray(datasets)
    sums = np.stack([found[names == name].sum(axis=0) for name in dict.fromkeys(datasets)])
    if not sums.any(axis=1).all():
        raise HeadwiseError("the prompts of a data set have no error in any layer; use longer prompts or a smaller budget")
    return tuple((sums / sums.sum(axis=1, keepdims=True)).mean(axis=0).tolist())
