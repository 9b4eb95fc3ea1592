"""Gates of heads (DuoAttention, Xiao et al. 2024, arXiv:2410.10819, section 2): mixing, the loss that finds them, the choice of heads and layers.

A gate in [0, 1] belongs to one KV head: 1 means that its query heads need the whole text, 0 that the first and the most recent tokens do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores, Scores

PENALTIES = ("mean", "group")
HIGH = 0.9  # a head above this is one that the optimiser wanted to keep


class GateLoss(NamedTuple):
    """Both parts of the loss that gates are trained with; scalars, float32, at least 0.

    Attributes:
        distillation: How far the gated model is from the full one.
        penalty: How much is kept, before its weight.
    """

    distillation: Tensor
    penalty: Tensor


class Pattern(NamedTuple):
    """Which heads or layers are retrieval heads or layers, the others stream.

    Attributes:
        kept: Bool, [layers, KV heads] or [layers].
        tied: Places among the kept ones that went to one of several equal candidates.
        cut: The highest gate, or mean gate of a layer, in [0, 1] that streams; NaN if none does.
    """

    kept: NDArray[np.bool_]
    tied: int
    cut: float

    @property
    def high_cut(self) -> bool:
        """Something streams although its gate is above 0.9: fewer are kept than the optimiser asked for."""
        return self.cut > HIGH


def mix(full: Tensor, stream: Tensor, gates: Tensor) -> Tensor:
    """Mixture gate x full + (1 - gate) x stream (section 2.2). At gates 0 and 1 it is exactly one of the two.

    Args:
        full: Output of full attention [B, T, H, d], by query head.
        stream: Output of attention to sinks and recent tokens, [B, T, H, d].
        gates: [G], one per KV head, H % G == 0; clamped to [0, 1] and kept in their own dtype.

    Returns:
        [B, T, H, d] in the dtype of `full`.
    """
    share = gates.clamp(0, 1).repeat_interleave(full.shape[2] // len(gates)).view(1, 1, -1, 1)
    return (share * full + (1 - share) * stream).to(full.dtype)


def gate_loss(student: Tensor, teacher: Tensor, gates: Tensor, form: str = "mean") -> GateLoss:
    """The two parts of the loss (section 2.2), both means, so that their weight does not depend on the model's size.

    The paper writes sums, its code means.

    Args:
        student: Last hidden states [..., d] of the gated model at the label positions.
        teacher: Those of the full model, [..., d].
        gates: [L, G].
        form: See `penalty`.

    Returns:
        Mean squared difference of student and teacher, and the penalty without its weight.

    Raises:
        HeadwiseError: Another form.
    """
    return GateLoss((student.float() - teacher.float()).square().mean(), penalty(gates, form))


def penalty(gates: Tensor, form: str = "mean") -> Tensor:
    """How much the gates keep.

    Args:
        gates: [L, G].
        form: `mean` of |gate| (the paper's L1 term, section 2.2), or `group`: the mean over layers of the row's length / sqrt(G), which empties
            whole rows (ours). Both are the same number if the gates of each row are equal.

    Returns:
        Scalar float32; at most 1 for gates in [0, 1].

    Raises:
        HeadwiseError: Another form.
    """
    if form not in PENALTIES:
        raise HeadwiseError(f"unknown penalty {form!r}; use {' or '.join(PENALTIES)}")
    gates = gates.float()
    if form == "mean":
        return gates.abs().mean()
    lengths: Tensor = torch.linalg.vector_norm(gates, dim=1)
    return lengths.mean() / math.sqrt(gates.shape[1])


def kv_gates(scores: HeadScores, layers: int, heads: int, kv_heads: int, model: str) -> Scores:
    """Gates per KV head from a table with one column per query head (equal inside a KV head) or per KV head.

    Args:
        scores: Of a gate detector, or a released table.
        layers: Of the model.
        heads: Query heads of the model.
        kv_heads: Of the model.
        model: Its name, for messages.

    Returns:
        [layers, KV heads]; NaN stays where a layer has no gates.

    Raises:
        HeadwiseError: The table of another model, or scores that differ between the query heads of a KV head.
    """
    values = scores.values
    if values.shape == (layers, heads):
        rows = values.reshape(layers, kv_heads, -1)
        if not np.array_equal(rows, np.broadcast_to(rows[..., :1], rows.shape), equal_nan=True):
            raise HeadwiseError(
                f"these {scores.score} scores differ between query heads that share a KV head of {model}, so they are no gates of it; "
                "find its gates first (headwise detect gate), or give a table [layer, KV head] of True and False"
            )
        return np.ascontiguousarray(rows[..., 0])
    if values.shape == (layers, kv_heads):
        return values
    raise HeadwiseError(
        f"gates of {values.shape[0]} layers x {values.shape[1]} heads do not belong to {model}, which has {layers} layers x {heads} "
        f"query heads ({kv_heads} KV heads); find its gates first (headwise detect gate)"
    )


def kept_count(keep: float, total: int) -> int:
    """How many of `total` a share is.

    Args:
        keep: In (0, 1].
        total: All there are.

    Returns:
        The nearest whole number, halves up, and at least 1.

    Raises:
        HeadwiseError: A share outside of (0, 1].
    """
    if not 0 < keep <= 1:
        raise HeadwiseError(f"keep is the share of retrieval heads and must lie in (0, 1]; got {keep:g}")
    return max(1, int(keep * total + 0.5))


def binarise(gates: Scores, keep: float, averaged: Scores | None = None, retrieval: Scores | None = None) -> Pattern:
    """The share `keep` of the heads with the highest gates.

    Args:
        gates: [L, G], finite; they count clamped to [0, 1].
        keep: In (0, 1].
        averaged: [L, G], gates averaged over training. Heads with equal gates are told apart by their unclamped gate, then by this one.
        retrieval: [L, G], a retrieval score, which decides where even those are equal; after it the lower index wins.

    Returns:
        The pattern [L, G], True for heads that keep the whole text.

    Raises:
        HeadwiseError: A share outside of (0, 1], no heads at all, a value that is missing, a table of another shape, or gates that are all equal.
    """
    if not gates.size:
        raise HeadwiseError("there is no layer with full attention whose heads could be chosen")
    rest = [table for table in (averaged, retrieval) if table is not None]
    for table in (gates, *rest):
        if table.shape != gates.shape or not np.isfinite(table).all():
            raise HeadwiseError(
                f"every head needs a finite gate (and so do the scores that decide ties); got {_said(table, gates)}"
            )
    clamped = gates.clip(0, 1)
    if clamped.min() == clamped.max():
        raise HeadwiseError(f"all {gates.size} gates are {clamped.flat[0]:g}; that is no ranking of heads")
    kept, tied = strongest(kept_count(keep, gates.size), clamped, gates, *rest)
    return Pattern(kept, tied, highest(clamped[~kept]))


def greedy_layers(means: Scores, count: int, loss: Callable[[NDArray[np.bool_]], float]) -> Pattern:
    """Retrieval layers by measurement: from all retrieval on, that layer streams next which raises the loss least.

    Args:
        means: Mean gates [layer]; of equally cheap layers the one with the lower mean streams first.
        count: Retrieval layers that are left in the end, at least 1.
        loss: Bool [layer], True for retrieval -> a number, smaller is better.

    Returns:
        The pattern; `tied` counts steps at which several layers were equally cheap.

    Raises:
        HeadwiseError: A loss that is not finite.
    """
    kept = np.ones(len(means), dtype=bool)
    tied = 0
    while kept.sum() > count:
        left = np.flatnonzero(kept)
        losses = np.array([loss(kept & (np.arange(len(kept)) != layer)) for layer in left])
        if not np.isfinite(losses).all():
            raise HeadwiseError("the measured loss of a pattern is not a finite number")
        best = losses == losses.min()
        tied += int(best.sum() > 1)
        kept[max(left[best], key=lambda layer: (-means[layer], layer))] = False
    return Pattern(kept, tied, highest(means[~kept]))


def strongest(count: int, *ranked: Scores) -> tuple[NDArray[np.bool_], int]:
    """The largest values of a table, ties decided by further ones.

    Args:
        count: How many, from 1 to the size of a table.
        ranked: Tables of one shape; each decides between those that are equal in all before it, then the lower index wins.

    Returns:
        (True for the `count` largest, how many of them the first table alone does not decide).
    """
    first = ranked[0].ravel()
    order = np.lexsort([-table.ravel() for table in reversed(ranked)])  # the last key is the first to decide; stable
    kept = np.zeros(first.size, dtype=bool)
    kept[order[:count]] = True
    least = first[order[count - 1]]
    above, equal = int((first > least).sum()), int((first == least).sum())
    return kept.reshape(ranked[0].shape), 0 if above + equal == count else count - above


def highest(values: Scores) -> float:
    """The largest value, NaN of none."""
    return float(values.max(initial=-np.inf)) if values.size else float("nan")


def _said(table: Scores, gates: Scores) -> str:
    if table.shape != gates.shape:
        return f"a table of shape {table.shape} beside gates of shape {gates.shape}"
    return f"{table.size - int(np.isfinite(table).sum())} of {table.size} without one"
