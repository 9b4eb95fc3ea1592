"""MuDAF's contrastive loss on queries and keys of chosen heads (Liu et al. 2025, arXiv:2502.13963; method figure and released code).

A head learns that the query of the question lies closer to the keys of gold passages than to those of others. Nothing is detached: in the
released code the form per head trains nothing, because its losses are copied into a new tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from headwise.attention.capture import NOT_SEEN, Capture, Captured, chosen_heads
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.maths.contrastive import Marked, RowLoss, check_flags, counts, info_nce, mean_loss
from headwise.runtime.options import check_choice

SIMS, POOLS, MODES = ("per_head", "concat"), ("mean", "lse"), ("in_context", "separate")
TEMPERATURE = 0.05


class Apart(NamedTuple):
    """A question and its passages, each read alone in a row of its own of one batch that is padded on the right.

    Attributes:
        anchor: Row of the question.
        passages: Row of each passage.
        gold: Per passage whether it answers the question.
    """

    anchor: int
    passages: tuple[int, ...]
    gold: tuple[bool, ...]


class Place(NamedTuple):
    """Positions [start, stop) of one row of a batch."""

    row: int
    start: int
    stop: int


class MudafLoss:
    """InfoNCE of each gold passage against all that are not gold, on what `capture` saw; the mean over gold passages, then over questions.

    Everything is computed in float32, whatever the model's dtype. Gradients reach queries and keys of the chosen heads and all that is below
    them, and nothing else of their layers.

    Args:
        heads: Chosen heads: a `HeadSet` or a list such as `[(5, 6), "L7H0"]`.
        temperature: Of the cosine, above 0; None takes `TEMPERATURE`. `lse` knows none and refuses one.
        sim: `per_head`: one loss per head, and their mean (the paper's figure). `concat`: one cosine over queries and keys of all heads one after
            another, layer by layer (the released code), in which heads with long vectors count more.
        pool: `mean`: cosine of the query and the mean key of a passage. `lse` (ours): log-sum-exp of the attention logits of a passage's tokens,
            so that the loss is InfoNCE on attention mass, the quantity that attention uses.
        mode: `in_context` (ours): question and passages stand in one prompt, the query is that of its last row. `separate`: each is read alone,
            as in the released code.
        keep_start: `separate`: let the first token of a passage count in its mean key, as the released code does. It is where heads rest that
            look for nothing, and its key is like no other.

    Attributes:
        heads: In the order of layers and heads.
        deepest: The last layer that must run.

    Raises:
        HeadwiseError: No heads, an unknown word, or options that do not go together.
    """

    def __init__(
        self,
        heads: Heads,
        temperature: float | None = None,
        sim: str = "per_head",
        pool: str = "mean",
        mode: str = "in_context",
        keep_start: bool = False,
    ) -> None:
        for name, given, known in (("sim", sim, SIMS), ("pool", pool, POOLS), ("mode", mode, MODES)):
            check_choice(name, given, known)
        if pool == "lse" and sim == "concat":
            raise HeadwiseError("pool lse sums what single heads attend to; it goes with sim per_head, not with concat")
        if pool == "lse" and temperature is not None:
            raise HeadwiseError("pool lse takes the model's own attention logits and no temperature; leave temperature out")
        if temperature is not None and not temperature > 0:
            raise HeadwiseError(f"the temperature must be above 0; got {temperature:g}")
        if keep_start and mode != "separate":
            raise HeadwiseError("keep_start goes with mode separate; passages inside a prompt have no first token of their own")
        self.heads = chosen_heads(heads)
        self.deepest = self.heads[-1].layer
        self.sim, self.pool, self.mode, self.keep_start = sim, pool, mode, keep_start
        self.temperature = TEMPERATURE if temperature is None else temperature

    def __call__(self, seen: Capture, questions: Sequence[Marked | Apart], lengths: Sequence[int] | None = None) -> RowLoss:
        """The loss of one pass.

        Args:
            seen: What `capture` yielded, behind the pass.
            questions: `Marked` ones (`in_context`) or `Apart` ones (`separate`).
            lengths: `separate`: tokens of each row of the batch without its padding, which stands on the right; None: there is none.

        Returns:
            The mean loss, and how many questions count; see `RowLoss`.

        Raises:
            HeadwiseError: Marks that do not fit the batch or the mode, passages that the question's row does not see (a sliding window), a
                head that the pass lacks, or a pass without gradients where gradients are on.
        """
        layers = seen.for_loss(self.heads)
        losses = []
        for question in questions:
            query, passages = self._places(question, layers[0][0], lengths)
            if counts(question.gold):
                losses.append(info_nce(self._similarity(layers, query, passages), question.gold).mean())
        return mean_loss(losses, layers[-1][0].query)

    def _places(self, question: Marked | Apart, first: Captured, lengths: Sequence[int] | None) -> tuple[Place, list[Place]]:
        """The query row of a question, and the tokens of each passage."""
        rows, tokens = first.query.shape[0], first.past + first.query.shape[2]
        if isinstance(question, Marked) != (self.mode == "in_context"):
            raise HeadwiseError(f"mode {self.mode} takes {'Marked' if self.mode == 'in_context' else 'Apart'} questions; got {question!r:.60}")
        if isinstance(question, Marked):
            question.check(rows, first.past, tokens)
            last = question.query[1] - 1
            return Place(question.row, last, last + 1), [Place(question.row, start, stop) for start, stop in question.passages]
        check_flags(question.passages, question.gold)
        sizes = [tokens] * rows if lengths is None else list(lengths)
        if len(sizes) != rows or not all(1 <= size <= tokens for size in sizes):
            raise HeadwiseError(f"lengths must be one number of 1 to {tokens} tokens for each of {rows} rows")
        if not all(0 <= row < rows for row in (question.anchor, *question.passages)):
            raise HeadwiseError(f"rows {(question.anchor, *question.passages)} do not all exist in a batch of {rows} rows")
        skipped = [int(not self.keep_start and sizes[row] > 1) for row in question.passages]
        places = [Place(row, start, sizes[row]) for row, start in zip(question.passages, skipped, strict=True)]
        return Place(question.anchor, sizes[question.anchor] - 1, sizes[question.anchor]), places

    def _similarity(self, layers: Sequence[tuple[Captured, list[int]]], query: Place, passages: Sequence[Place]) -> Tensor:
        """[heads, P], or [P] of all heads together, divided by the temperature."""
        device = layers[0][0].query.device  # layers may lie on several
        if self.pool == "lse":
            return torch.cat([_log_masses(*layer, query, passages).to(device) for layer in layers])
        pairs = [_mean_keys(*layer, query, passages) for layer in layers]
        if self.sim == "per_head":
            found = torch.cat([cosine_similarity(vectors.unsqueeze(1), keys, dim=-1).to(device) for vectors, keys in pairs])
        else:
            whole = torch.cat([vectors.flatten().to(device) for vectors, _ in pairs])
            found = cosine_similarity(whole, torch.cat([keys.transpose(0, 1).flatten(1).to(device) for _, keys in pairs], dim=1), dim=-1)
        return found / self.temperature


def _vectors(layer: Captured, heads: list[int], query: Place, passages: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
    """The query [n, d], and the keys of each passage [n, tokens, d]."""
    inside = [(place.start, place.stop) for place in passages if place.row == query.row]
    if inside and not layer.sees(query.row, query.start, inside):
        raise HeadwiseError(NOT_SEEN)
    rows = {row: layer.of_heads(row, heads) for row in {query.row, *(place.row for place in passages)}}
    return rows[query.row][0][:, query.start - layer.past], [rows[place.row][1][:, place.start : place.stop] for place in passages]


def _mean_keys(layer: Captured, heads: list[int], query: Place, passages: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """The query [n, d], and the mean key of each passage [n, P, d]."""
    vectors, keys = _vectors(layer, heads, query, passages)
    return vectors, torch.stack([one.mean(dim=1) for one in keys], dim=1)


def _log_masses(layer: Captured, heads: list[int], query: Place, passages: Sequence[Place]) -> Tensor:
    """[n, P], the logarithm of each passage's attention mass, up to a number that all passages of a head share."""
    vectors, keys = _vectors(layer, heads, query, passages)
    found = []
    for one in keys:
        logits = torch.einsum("nd,ntd->nt", vectors, one) * layer.scaling
        if layer.softcap is not None:
            logits = layer.softcap * torch.tanh(logits / layer.softcap)
        found.append(logits.logsumexp(dim=-1))
    return torch.stack(found, dim=1)
