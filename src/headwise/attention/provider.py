"""Where a layer's keys come from: tensors as transformers hands them over, or a cache that attends over what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from headwise.maths.attend import attend


class KeyPart(NamedTuple):
    """Keys and values that the query heads of some KV heads attend to.

    Attributes:
        heads: [n] int64, which KV heads; None for all in order.
        keys, values: Segments [B or 1, n, S_i, d] along the sequence; S positions in all.
        mask: Bool [B or 1, 1 or n, R, S] for the newest R rows, or None where these are the last R keys and look back at everything.
        positions: [B or 1, 1 or n, S] int32, position in the text of each key, -1 for none; None where key i stands at `first` + i.
        first: Position of the first key; counts only where `positions` is None.
    """

    heads: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None
    positions: Tensor | None = None
    first: int = 0

    @property
    def length(self) -> int:
        """Positions S in all segments."""
        return sum(segment.shape[2] for segment in self.keys)


class KeyProvider(Protocol):
    """Keys and values of one layer in a form of their own (whole, compressed, sparse, on another device)."""

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """Softmax attention [B, T, H, d] of `query` [B, H, T, d] over what is held. softcap, sinks [H]: see `row_statistics`."""

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """What the newest `rows` query rows attend to, every KV head once. stop: position behind the last of them.

        Raises:
            HeadwiseError: What is held cannot be named by position.
        """


@dataclass(frozen=True)
class Whole:
    """All keys and values of a layer that its cache holds.

    Attributes:
        keys, values: Segments [B or 1, G, S_i, d]; a first one with batch 1 is a past that all rows share. The T queries are the last positions.
        mask: [B or 1, 1, T, S] bool, or float (added), or None for causal.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None

    @property
    def length(self) -> int:
        """Positions in all segments."""
        return sum(segment.shape[2] for segment in self.keys)

    @property
    def visible(self) -> Tensor | None:
        """The mask as bool. Others come from callers who pass a 4D mask of their own; its finite entries are visible."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return self.mask
        return self.mask > torch.finfo(self.mask.dtype).min / 2

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """Attention of the newest rows; `query` may hold fewer than the mask."""
        mask = None if self.mask is None else self.mask[:, :, -query.shape[2] :]
        past = (self.keys[0], self.values[0]) if len(self.keys) == 2 else None
        return attend(query, self.keys[-1], self.values[-1], scaling=scaling, mask=mask, past=past, softcap=softcap, sinks=sinks)

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """One part. Caches of transformers drop what a sliding window no longer sees, so the first key need not stand at 0."""
        mask = self.visible
        mask = None if mask is None else mask[:, :, -rows:]
        return (KeyPart(None, self.keys, self.values, mask, first=max(0, stop - self.length)),)
