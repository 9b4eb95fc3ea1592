"""QRRanker's loss (arXiv:2602.12192): attention mass of chosen heads as a relevance score, taught passage list by passage list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.attention.capture import NOT_SEEN, Capture, Captured, chosen_heads
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.maths.contrastive import Marked, RowLoss, counts, info_nce, max_min, mean_loss
from headwise.maths.rows import row_statistics


class RankLoss:
    """Group contrastive loss: scores of passages, stretched to [0, 1] over the passages of a question, in a softmax.

    A passage's score is the attention mass that the question's rows pay to it, the mean over rows and the sum over heads, as an uncalibrated
    `Ranker` ranks. The loss is the mean over gold passages of the negative logarithm of the softmax over that passage and all that are not
    gold; then the mean over questions. Computed in float32, without an attention matrix.

    Args:
        heads: Chosen heads: a `HeadSet` or a list such as `[(5, 6), "L7H0"]`.
        temperature: Of the softmax, above 0. We do not know the paper's; at 0.1 the logits lie between 0 and 10.

    Attributes:
        heads: In the order of layers and heads.
        deepest: The last layer that must run.
        temperature: As given.

    Raises:
        HeadwiseError: No heads or what is none, or a temperature that is not above 0.
    """

    def __init__(self, heads: Heads, temperature: float = 0.1) -> None:
        if not temperature > 0:
            raise HeadwiseError(f"the temperature must be above 0; got {temperature:g}")
        self.heads, self.temperature = chosen_heads(heads), temperature
        self.deepest = self.heads[-1].layer

    def __call__(self, seen: Capture, questions: Sequence[Marked]) -> RowLoss:
        """The loss of one pass.

        Args:
            seen: What `capture` yielded, behind the pass.
            questions: Where they stand in the batch.

        Returns:
            The mean loss, and how many questions count; see `RowLoss`.

        Raises:
            HeadwiseError: As `scores`.
        """
        layers = seen.for_loss(self.heads)
        losses = []
        for question in questions:
            scores = self._scores(layers, question)
            if counts(question.gold):
                losses.append(info_nce(max_min(scores) / self.temperature, question.gold))
        return mean_loss(losses, layers[-1][0].query)

    def scores(self, seen: Capture, question: Marked) -> Tensor:
        """Attention mass of each passage.

        Args:
            seen: What `capture` yielded, behind the pass.
            question: Where it stands in the batch.

        Returns:
            [P] float32, in [0, number of heads].

        Raises:
            HeadwiseError: Marks that do not fit the batch, passages that the question's rows do not see (a sliding window), a head that the
                pass lacks, or a pass without gradients where gradients are on.
        """
        return self._scores(seen.for_loss(self.heads), question)

    def _scores(self, layers: Sequence[tuple[Captured, list[int]]], question: Marked) -> Tensor:
        first = layers[0][0]
        question.check(len(first.query), first.past, first.past + first.query.shape[2])
        return torch.stack([_masses(*layer, question).to(first.query.device) for layer in layers]).sum(dim=0)


def _masses(layer: Captured, heads: list[int], question: Marked) -> Tensor:
    """[P], mean over the question's rows of the attention mass of each passage, summed over heads."""
    first, last = question.query[0], question.query[1] - 1
    if not (layer.sees(question.row, first, question.passages) and layer.sees(question.row, last, question.passages)):
        raise HeadwiseError(NOT_SEEN)
    rows = slice(first - layer.past, last + 1 - layer.past)
    query, keys = layer.of_heads(question.row, heads)
    mask = layer.visible(question.row, rows)
    sinks = None if layer.sinks is None else layer.sinks[heads]
    seen = row_statistics(
        query[None, :, rows], [keys[None]], scaling=layer.scaling, mask=mask, spans=question.passages, softcap=layer.softcap, sinks=sinks
    )
    return seen.mass[0].mean(dim=1).sum(dim=0)
