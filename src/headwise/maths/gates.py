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
    """distillation: how far the gated model is from the full one. penalty: how much is kept, before its weight. Scalars, float32."""

    distillation: Tensor
    penalty: Tensor


class Pattern(NamedTuple):
    """Which heads or layers are retrieval heads or layers, the others stream.

    kept: bool, [layers, KV heads] or [layers]. tied: places among the kept ones that went to one of several equal candidates. cut: the highest
    gate, or mean gate of a layer, in [0, 1] that streams; NaN if none does.
    """

    kept: NDArray[np.bool_]
    tied: int
    cut: float

    @property
    def high_cut(self) -> bool:
        """Something streams although its gate is above 0.9: fewer are kept than the optimiser asked for."""
        return self.cut > HIGH


def mix(full: Tensor, stream: Tensor, gates: Tensor) -> Tensor:
    """Mixture gate x full + (1 - gate) x stream of query heads [B, T, H, d] and gates [G] of their KV heads (H % G == 0).

    Gates are clamped to [0, 1] and kept in their own dtype; the result has that of `full`. At 0 and 1 it is exactly one of the two.
    """
    share = gates.clamp(0, 1).repeat_interleave(full.shape[2] // len(gates)).view(1, 1, -1, 1)
    return (share * full + (1 - share) * stream).to(full.dtype)


def gate_loss(student: Tensor, teacher: Tensor, gates: Tensor, form: str = "mean") -> GateLoss:
    """The two parts of the loss, both means, so that their weight does not depend on the model's size (the paper writes sums, its code means).

    student, teacher [..., d]: last hidden states of the gated and of the full model at the label positions. gates: see `penalty`.
    """
    return GateLoss((student.float() - teacher.float()).square().mean(), penalty(gates, form))


def penalty(gates: Tensor, form: str = "mean") -> Tensor:
    """Mean of |gate| over gates [L, G], or with `group` the mean over layers of the row's length / sqrt(G), which empties whole rows.

    Both are the same number for rows of equal gates. Raises `HeadwiseError` for another form.
    """
    if form not in PENALTIES:
        raise HeadwiseError(f"unknown penalty {form!r}; use {' or '.join(PENALTIES)}")
    gates = gates.float()
    if form == "mean":
        return gates.abs().mean()
    lengths: Tensor = torch.linalg.vector_norm(gates, dim=1)
    return lengths.mean() / math.sqrt(gates.shape[1])


def kv_gates(scores: HeadScores, layers: int, heads: int, kv_heads: int, model: str) -> Scores:
    """Gates [layers, KV heads] from a table with one column per query head (equal inside a KV head) or per KV head.

    layers, heads, kv_heads: of the model. Raises `HeadwiseError` for the table of another model, and for scores of single query heads.
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
    """How many of `total` a share in (0, 1] is: the nearest whole number, at least 1."""
    if not 0 < keep <= 1:
        raise HeadwiseError(f"keep is the share of retrieval heads and must lie in (0, 1]; got {keep:g}")
    return max(1, int(keep * total + 0.5))


def binarise(gates: Scores, keep: float, averaged: Scores | None = None, retrieval: Scores | None = None) -> Pattern:
    """The share `keep` of the heads with the highest gates. All tables [L, G].

    Gates count clamped to [0, 1]. Equal ones are told apart by their unclamped value, then by the gate averaged over training, then by a
    retrieval score, each if given, then the lower index wins. Raises `HeadwiseError` for a missing gate and if all are equal.
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
    """(True for the `count` largest, how many of them the first table alone does not decide).

    ranked: tables of one shape; each decides between those that are equal in all before it, then the lower index wins.
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
