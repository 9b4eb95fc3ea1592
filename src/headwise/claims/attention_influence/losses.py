"""Losses of documents without several sets of heads, each document's own loss computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.branches import LossHead, branch_losses, branches
from headwise.claims.experiment import Bench, NotTestable
from headwise.corpus.documents import batches_of, encode_documents, windows_of
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.influence.defaults import FLOOR, MAX_LEN, MODE
from headwise.models.model import Model, describe_model, device_of
from headwise.prompts.encoder import PieceEncoder

TOKENS = 512  # of a batch, before it is repeated for every set

Array = NDArray[np.float64]


class Losses(NamedTuple):
    """Mean losses per document.

    Attributes:
        base: [document] nats per token of the model as it is.
        changed: [set, document] without each set of heads.
        tokens: [document] tokens of each.
    """

    base: Array
    changed: Array
    tokens: NDArray[np.int64]

    @property
    def scores(self) -> Array:
        """[set, document] relative loss increases (Hua et al. 2025, arXiv:2505.07293, eq. 5)."""
        return (self.changed - self.base) / np.maximum(self.base, FLOOR)


def losses_without(model: Model, sets: Sequence[HeadSet], texts: Sequence[str], mode: str = MODE, means: Tensor | None = None) -> Losses:
    """Losses of every document, as it is and without each set of heads, in one pass over the documents."""
    head, bos, device = LossHead(model.hf), PieceEncoder(model.tokenizer).bos, device_of(model.hf)
    documents = encode_documents(model.tokenizer, texts, head.vocabulary)
    lengths = [len(document.ids) for document in documents]
    sums, scored = np.zeros((1 + len(sets), len(texts))), np.zeros(len(texts), dtype=np.int64)
    windows = windows_of(lengths, min(MAX_LEN, model.positions or MAX_LEN) - len(bos))
    with branches(model.hf, sets, mode, means) as run:
        for batch in batches_of(windows, TOKENS):
            ids = [documents[window.document].ids[window.start : window.stop] for window in batch]
            for window, losses in zip(batch, branch_losses(run, head, ids, bos, device), strict=True):
                sums[:, window.document] += losses.sum(axis=1, dtype=np.float64)
                scored[window.document] += window.scored
    found = sums / scored
    return Losses(found[0], found[1:], np.array(lengths))


class KeptLosses:
    """`losses_without`, but what was computed once is read from finished cells.

    Attributes:
        model: Whose losses they are.
    """

    def __init__(self, bench: Bench, model: Model, part: str = "losses") -> None:
        self.model = model
        self._cells = bench.cells(part, {"model": describe_model(model)})

    def __call__(self, sets: Sequence[HeadSet], texts: Sequence[str], mode: str = MODE, means: Tensor | None = None) -> Losses:
        """See `losses_without`; `means` must be decided by the other arguments.

        Raises:
            NotTestable: Heads of this model cannot be ablated, or its losses not be computed.
        """
        asked = [[sorted(map(str, one)) for one in sets], list(texts), mode]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
        kept = self._cells.load(key)
        if kept is not None:
            return Losses(**kept[0])
        try:
            found = losses_without(self.model, sets, texts, mode, means)
        except HeadwiseError as error:
            raise NotTestable(f"no losses without heads: {error}") from error
        self._cells.save(key, found._asdict(), [])
        return found
