"""What chosen heads say about every token of an answer, and where they look meanwhile: token by token, or a finished answer in one pass.

A row that predicts token t has the features `ell_h(t)` (see `HeadLens`), and scores position j of the prompt by
`sum_h w_h * ell_h(t) * A_h[row, j]` (Kahardipraja et al. 2025, arXiv:2505.15807, sec. 6).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.attention.call import Pass
from headwise.attention.head_rows import LayerRows, head_rows
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, HeadSet
from headwise.models.lens import HeadLens
from headwise.models.model import Model

BLOCK = 2**23  # attention weights held at once, in float32


class Row(NamedTuple):
    """What the heads say and look at in one row.

    Attributes:
        features: [B, K] float32, what each head says about the token that follows.
        scores: [B, P] float32, the weighted sum over heads per position of the prompt.
    """

    features: Tensor
    scores: Tensor


class TokenRows:
    """Collects a `Row` for every token of an answer. `token_rows` makes it.

    Rows are known by position: the row at position p predicts the token at p + 1. The newest row waits until its token is known, which the
    next pass tells.

    Attributes:
        length: Tokens of the prompts, padding in front included; None until the first pass.
        rows: Position -> the row that predicts the token behind it, with its tokens [B].
    """

    def __init__(self, lens: HeadLens, heads: HeadSet, weights: Sequence[float], length: int | None) -> None:
        self._lens, self._heads, self._given = lens, heads, length
        self.length = length
        order = {head: i for i, head in enumerate(heads)}
        self._places = {layer: [order[HeadId(layer, head)] for head in own] for layer, own in lens.heads.items()}
        self._on: dict[tuple[int, torch.device], Tensor] = {}  # weights by layer and device
        self._weights = torch.tensor(list(weights), dtype=torch.float32)
        self.rows: dict[int, tuple[Tensor, Row]] = {}
        self._next: Tensor | None = None  # [B, R - 1] tokens that follow the rows of this pass, all but the last
        self._first = 0  # position of the first row of this pass
        self._known: list[Row] = []
        self._vectors: dict[int, Tensor] = {}
        self._attention: dict[int, Tensor] = {}
        self._waiting: int | None = None  # position of the newest row

    def begin(self, now: Pass) -> int:
        """A pass begins: how many of its newest rows predict tokens of the answer.

        Raises:
            HeadwiseError: The pass hides its tokens, takes tokens back, or leaves some out.
        """
        ids = now.inputs
        if ids is None or ids.ndim != 2 or ids.is_floating_point():
            raise HeadwiseError("tracing needs passes over token ids; this one has embeddings or hides its tokens")
        if now.before == 0:
            self._restart(ids.shape[1])
        length = self.length or 0
        if self._waiting is not None:
            if now.before != self._waiting + 1:
                raise HeadwiseError(
                    f"tracing saw {self._waiting + 1} tokens and the next pass begins behind {now.before}: drafts that are taken back "
                    "cannot be followed; generate without drafts, or trace the finished answer"
                )
            self._settle(ids[:, 0])
        self._first = max(length - 1, now.before)
        count = now.before + ids.shape[1] - self._first
        if count < 1:
            return 0
        self._next = ids[:, ids.shape[1] - count + 1 :]
        self._known, self._vectors, self._attention = [], {}, {}
        self._waiting = self._first + count - 1
        return count

    @torch.no_grad()
    def use(self, seen: LayerRows) -> None:
        """One layer: features and scores of rows whose token is known, and what the newest row needs until its token is."""
        tokens, length = self._next, self.length or 0
        vectors = self._lens.vectors(seen.layer, seen.outputs)  # [B, R, n, width]
        rows, places = vectors.shape[1], self._places[seen.layer]
        self._vectors[seen.layer] = vectors[:, -1]
        self._attention[seen.layer] = seen.attention(slice(rows - 1, rows), length)[:, :, 0]
        if tokens is None or rows < 2:
            return
        said = self._lens.scores(vectors[:, :-1], tokens)  # [B, R - 1, n]
        device = seen.call.query.device
        weighted = (said * self._trust(seen.layer, said.device)).to(device)
        step = max(1, BLOCK // (len(places) * length * len(vectors)))
        parts = []
        for start in range(0, rows - 1, step):
            block = slice(start, min(start + step, rows - 1))
            parts.append(torch.einsum("brn,bnrp->brp", weighted[:, block], seen.attention(block, length)))
        self._keep(places, said, torch.cat(parts, dim=1))

    def end(self) -> None:
        """A pass has ended: rows whose token is known are done."""
        if self._known and self._next is not None:
            (found,) = self._known
            for i in range(self._next.shape[1]):
                self.rows[self._first + i] = (self._next[:, i], Row(found.features[:, i], found.scores[:, i]))
        self._known = []

    @torch.no_grad()
    def newest(self, tokens: Tensor) -> Row:
        """The newest row for any tokens [B] that might follow it.

        Raises:
            HeadwiseError: No pass has reached the end of the prompt.
        """
        if not self._vectors:
            raise HeadwiseError("nothing was traced: run the model over the whole prompt inside the block")
        device = next(iter(self._vectors.values())).device  # layers may lie on several
        said = {layer: self._lens.scores(vectors, tokens).to(device) for layer, vectors in self._vectors.items()}
        scores = torch.stack(
            [
                torch.einsum("bn,bnp->bp", said[layer] * self._trust(layer, device), where.to(device))
                for layer, where in self._attention.items()
            ]
        ).sum(dim=0)
        order = torch.tensor([place for layer in said for place in self._places[layer]], device=device).argsort()
        return Row(torch.cat(list(said.values()), dim=-1)[:, order], scores)

    def looks(self) -> Tensor:
        """[B, K, P] float32: attention weights of the newest row, head by head."""
        device = next(iter(self._attention.values())).device
        order = torch.tensor([place for layer in self._attention for place in self._places[layer]], device=device).argsort()
        return torch.cat([where.to(device) for where in self._attention.values()], dim=1)[:, order]

    def _trust(self, layer: int, device: torch.device) -> Tensor:
        """[n] weights of a layer's heads."""
        key = (layer, device)
        if key not in self._on:
            self._on[key] = self._weights[self._places[layer]].to(device)
        return self._on[key]

    def _settle(self, tokens: Tensor) -> None:
        """The token behind the newest row is known."""
        if self._waiting is not None:
            self.rows[self._waiting] = (tokens, self.newest(tokens))
            self._waiting = None

    def _restart(self, tokens: int) -> None:
        """A new text begins."""
        self.rows, self._waiting, self._vectors, self._attention = {}, None, {}, {}
        self.length = tokens if self._given is None else self._given

    def _keep(self, places: list[int], said: Tensor, scores: Tensor) -> None:
        """Add one layer to the known rows."""
        if not self._known:
            self._known.append(Row(said.new_zeros(*said.shape[:2], len(self._heads)), torch.zeros_like(scores)))
        features, summed = self._known[0]
        features[..., places] = said.to(features.device)
        summed += scores.to(summed.device)


@contextmanager
def token_rows(model: Model, heads: HeadSet, weights: Sequence[float], length: int | None = None) -> Iterator[TokenRows]:
    """Inside the block every pass over a text leaves the rows of its answer.

    Args:
        model: The model.
        heads: K heads of it.
        weights: [K], w above.
        length: Tokens of the prompt, padding in front included (rows of a batch end together); None: the first pass is the prompt.

    Yields:
        The rows. A pass without a past starts anew.

    Raises:
        HeadwiseError: Heads of another model, packed weights; and in a pass that `TokenRows.begin` refuses, or over a compressed cache.
    """
    lens = HeadLens(model, model.by_layer(heads))
    rows = TokenRows(lens, heads, weights, length)

    def ended(*_: Any) -> None:
        rows.end()

    with head_rows(model, heads, rows.begin, rows.use):
        hook = model.hf.register_forward_hook(ended)
        try:
            yield rows
        finally:
            hook.remove()
