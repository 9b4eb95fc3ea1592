"""Contrastive losses that teach chosen heads to tell the gold passages of a question from all others.

Two methods share them: MuDAF (Liu et al. 2025, arXiv:2502.13963) compares queries and keys, QRRanker (arXiv:2602.12192) attention masses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from headwise.heads.errors import HeadwiseError


class Marked(NamedTuple):
    """Where a question and its passages stand in one row of a batch. Positions count the row's padding.

    Attributes:
        row: Of the batch.
        query: Query rows [start, stop) that ask. A loss of one query row takes the last of them.
        passages: Key positions [start, stop) of each passage, in front of the query rows.
        gold: Per passage whether it answers the question.
    """

    row: int
    query: tuple[int, int]
    passages: tuple[tuple[int, int], ...]
    gold: tuple[bool, ...]

    def check(self, rows: int, first: int, length: int) -> None:
        """Refuse marks that do not fit the batch.

        Args:
            rows: Of the batch.
            first: Position of the first query row of the pass.
            length: Positions of a row.

        Raises:
            HeadwiseError: A row or position that does not exist; empty or overlapping spans; a passage behind the question; too few or too
                many flags.
        """
        check_flags(self.passages, self.gold)
        begin, end = self.query
        if not (0 <= self.row < rows and first <= begin < end <= length):
            raise HeadwiseError(
                f"the question [{begin}, {end}) of row {self.row} lies outside a batch of {rows} rows with positions {first} to {length - 1}"
            )
        behind = 0  # the passage before
        for start, stop in sorted(self.passages):
            if not behind <= start < stop <= begin:
                raise HeadwiseError(
                    f"passage [{start}, {stop}) of row {self.row} is empty, overlaps another one, or does not end before the question at {begin}"
                )
            behind = stop


class RowLoss(NamedTuple):
    """A loss over the questions of a batch.

    Attributes:
        loss: Scalar, the mean over the questions that count; 0 if none does, so that a backward pass adds nothing.
        rows: How many count. Questions without a gold passage, or without another one, do not.
    """

    loss: Tensor
    rows: int


def check_flags(passages: Sequence[object], gold: Sequence[bool]) -> None:
    """Raise `HeadwiseError` unless every passage says whether it is gold."""
    if len(passages) != len(gold):
        raise HeadwiseError(f"{len(gold)} flags say which of {len(passages)} passages are gold; give one per passage")


def counts(gold: Sequence[bool]) -> bool:
    """Whether a question has both a gold passage and another one, without which there is nothing to tell apart."""
    return any(gold) and not all(gold)


def info_nce(similarity: Tensor, gold: Sequence[bool]) -> Tensor:
    """Cross-entropy of each gold passage against itself and all that are not gold; the mean over the gold ones, which never compete.

    Args:
        similarity: [..., P], divided by the temperature.
        gold: [P]; at least one passage is gold and one is not.

    Returns:
        [...] at least 0, in nats.
    """
    flags = torch.tensor(gold, device=similarity.device)
    others = similarity[..., ~flags].logsumexp(dim=-1, keepdim=True)
    return softplus(others - similarity[..., flags]).mean(dim=-1)  # -log(e^s / (e^s + e^others))


def max_min(scores: Tensor) -> Tensor:
    """Scores [..., P] moved and stretched to [0, 1]; all 0 where they are equal."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    width = high - low
    return (scores - low) / torch.where(width > 0, width, torch.ones_like(width))


def mean_loss(losses: Sequence[Tensor], like: Tensor) -> RowLoss:
    """The mean over questions.

    Args:
        losses: A scalar per question that counts.
        like: What the loss is computed from; without losses the result is 0 and still has a way back to it.
    """
    return RowLoss(torch.stack(list(losses)).mean() if losses else 0.0 * like.float().sum(), len(losses))
