"""Documents as batches: windows of long ones, batches of windows of about the same length, and the losses of two branches on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.methods.influence.branches import Run
from headwise.methods.influence.loss_head import LossHead

Ids = NDArray[np.int32]
PAD = 0  # any id will do: nobody looks at what stands behind a text


class Window(NamedTuple):
    """Tokens [start, stop) of a document, read in one pass. All but the first have a loss."""

    document: int
    start: int
    stop: int

    @property
    def scored(self) -> int:
        """Tokens with a loss."""
        return self.stop - self.start - 1


def windows_of(lengths: Sequence[int], size: int, most: int | None = None) -> list[Window]:
    """Windows of `size` tokens side by side, the last one of a document shorter; at most `most` of them per document.

    A window of one token has nothing to predict and is left out. Raises `HeadwiseError` for a size below 2.
    """
    if size < 2:
        raise HeadwiseError(f"windows need at least 2 tokens, of which the second is predicted; got {size}")
    found = []
    for document, length in enumerate(lengths):
        starts = range(0, length, size)[:most]
        found += [Window(document, start, min(start + size, length)) for start in starts if length - start > 1]
    return found


def batches_of(windows: Sequence[Window], tokens: int) -> list[list[Window]]:
    """Batches of at most `tokens` tokens, padding counted (one window at least). They depend on this list alone.

    Windows are sorted by length, so that hardly any padding is needed; the longest come first, so that memory runs out at once or never.
    """
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda w: (-w.scored, w)):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].scored > tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


def branch_losses(
    run: Run, head: LossHead, texts: Sequence[Ids], bos: Sequence[int], device: torch.device
) -> list[NDArray[np.float32]]:
    """Losses [2, n - 1] in nats of each text [n], n >= 2, from the second token on: of the model, and without the heads (see `branches`).

    bos: ids put in front of every text; they have no loss. Neither do padding and last tokens ever meet the output projection.
    """
    ahead, lengths = len(bos), [len(text) - 1 for text in texts]
    ids = np.full((len(texts), ahead + max(lengths)), PAD, dtype=np.int64)  # a last token predicts nothing, so it is not read
    ids[:, :ahead] = bos
    for row, text in zip(ids, texts, strict=True):
        row[ahead : ahead + len(text) - 1] = text[:-1]
    places = np.concatenate([np.arange(n) + i * ids.shape[1] + ahead for i, n in enumerate(lengths)])
    targets = torch.from_numpy(np.concatenate([text[1:] for text in texts]).astype(np.int64)).to(device)
    hidden = run(torch.from_numpy(ids).to(device)).flatten(1, 2)
    chosen = hidden[:, torch.from_numpy(places).to(hidden.device)].flatten(0, 1)
    losses = head(chosen, targets.repeat(2)).view(2, -1).cpu().numpy()
    return np.split(losses, np.cumsum(lengths)[:-1], axis=1)
