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
    """Steps that say a token of the answer span; a step counts once, however often its token occurs in the span.

    Args:
        emitted: Token ids [T] that were said.
        answer_ids: Token ids [A] of the span.

    Returns:
        Bool [T].
    """
    return torch.isin(emitted, answer_ids)


def semantic_score(mass: Tensor, matching: Tensor) -> Tensor:
    """Attention mass on the whole answer span, summed over the matching steps (equation 5).

    Args:
        mass: [..., T] float, share of the row that predicts step t which falls on the span.
        matching: [T] bool (see `matching_steps`).

    Returns:
        [...], from 0 to the number of matching steps.
    """
    return mass[..., matching].sum(dim=-1)


def semantic_lift(mass: Tensor, matching: Tensor, answer: int, prompt: int) -> Tensor:
    """Mean mass over the matching steps divided by the share of an even look over the prompt.

    Args:
        mass: As for `semantic_score`.
        matching: As for `semantic_score`.
        answer: Length of the span in tokens.
        prompt: Length of the prompt in tokens.

    Returns:
        [...]; 1 is no preference, NaN that no step matches. Unlike the score it compares across spans and prompts of different length.
    """
    return mass[..., matching].mean(dim=-1) * prompt / answer


def row_errors(kept: Tensor, full: Tensor) -> Tensor:
    """Relative errors |kept - full| / (|full| + epsilon) of a layer's output, summed over rows (eq. 6-9).

    Args:
        kept: [..., T, d], output of T rows over the kept positions.
        full: [..., T, d], output of the same rows over all.

    Returns:
        [...] float32, at least 0.
    """
    full = full.float()
    ratios: Tensor = (kept.float() - full).norm(dim=-1) / (full.norm(dim=-1) + EPSILON)
    return ratios.sum(dim=-1)


def layer_shares(errors: NDArray[np.float64], datasets: Sequence[str]) -> tuple[float, ...]:
    """Share of each layer in the errors: sums per data set, divided by their total over layers, then the mean over data sets (eq. 10-12).

    Args:
        errors: [prompt, layer]; NaN (layers that are not compressed) counts as 0.
        datasets: One name per prompt.

    Returns:
        One share per layer; they add up to 1.

    Raises:
        HeadwiseError: A data set without any error.
    """
    found, names = np.nan_to_num(errors), np.asarray(datasets)
    sums = np.stack([found[names == name].sum(axis=0) for name in dict.fromkeys(datasets)])
    if not sums.any(axis=1).all():
        raise HeadwiseError("the prompts of a data set have no error in any layer; use longer prompts or a smaller budget")
    return tuple((sums / sums.sum(axis=1, keepdims=True)).mean(axis=0).tolist())
