"""Losses of documents without several sets of heads, each document's own loss computed once; and statistics of their scores.

`StoredLosses` keeps what is finished in a folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.branches import LossHead, branch_losses, branches
from headwise.corpus.documents import batches_of, encode_documents, windows_of
from headwise.heads import HeadSet
from headwise.methods.influence.defaults import FLOOR, MAX_LEN, MODE
from headwise.models.model import Model, device_of
from headwise.prompts.encoder import PieceEncoder
from headwise.stats.ranks import auc, ranks_within

TOKENS = 512  # of a batch, before it is repeated for every set
RESAMPLINGS = 2000

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


def losses_without(
    model: Model, sets: Sequence[HeadSet], texts: Sequence[str], mode: str = MODE, means: Tensor | None = None
) -> Losses:
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


class StoredLosses:
    """`losses_without`, but what was computed once is read from a folder (None: nothing is kept)."""

    def __init__(self, model: Model, name: str, folder: Path | None) -> None:
        """name: of the model, in the names of files."""
        self.model, self._name, self._folder = model, name, folder

    def __call__(self, sets: Sequence[HeadSet], texts: Sequence[str], mode: str = MODE, means: Tensor | None = None) -> Losses:
        asked = [self._name, [sorted(map(str, one)) for one in sets], list(texts), mode]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
        path = self._folder / f"{key}.npz" if self._folder else None
        if path is not None and path.exists():
            with np.load(path) as file:
                return Losses(file["base"], file["changed"], file["tokens"])
        found = losses_without(self.model, sets, texts, mode, means)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part.npz")
            np.savez(draft, **found._asdict())
            draft.rename(path)
        return found


def bootstrap(
    statistic: Callable[[Mapping[str, NDArray[np.int64]]], float], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, float]:
    """A statistic of groups of documents with its 95 % interval: documents are drawn again with replacement inside each group.

    Args:
        statistic: Of the places of the documents of each group.
        sizes: Documents of each group.
        seed: Of the resamplings.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic({name: rng.integers(n, size=n) for name, n in sizes.items()}) for _ in range(RESAMPLINGS)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"value": statistic({name: np.arange(n) for name, n in sizes.items()}), "low": float(low), "high": float(high)}


def auc_interval(positives: Array, negatives: Array) -> dict[str, float]:
    """AUC with its 95 % interval over documents."""
    sizes = {"positives": len(positives), "negatives": len(negatives)}
    return bootstrap(lambda at: auc(positives[at["positives"]], negatives[at["negatives"]]), sizes)


def placements(positives: Array, negatives: Array) -> Array:
    """[positive] share of the negatives below each positive, ties counted half. Their mean is the AUC."""
    below = (positives[:, None] > negatives[None]).mean(axis=1)
    return np.asarray(below + 0.5 * (positives[:, None] == negatives[None]).mean(axis=1))


def standard_ranks(values: Array, groups: NDArray[np.int64]) -> Array:
    """[n] ranks inside each group with mean 0 and variance 1; the mean product of two is their rank correlation inside groups."""
    out = ranks_within(values, groups)
    for group in np.unique(groups):
        where = groups == group
        spread = out[where].std()
        out[where] = (out[where] - out[where].mean()) / (spread if spread > 0 else 1.0)
    return out


def without_influence_of(ranks: Array, others: Sequence[Array]) -> Array:
    """What is left of ranks when the part that other ranks explain linearly is taken away."""
    table = np.column_stack([np.ones(len(ranks)), *others])
    left = ranks - table @ np.linalg.lstsq(table, ranks, rcond=None)[0]
    return np.asarray(left / left.std())


def rounded(value: Any) -> Any:
    """JSON data with four digits behind the point."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value
