"""What a cache may hand to the attention function in place of keys: something that attends over what it holds."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class KeyProvider(Protocol):
    """Keys and values of one layer in a form of their own (compressed, sparse, on another device)."""

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """Softmax attention [B, T, H, d] of `query` [B, H, T, d] over what is held. softcap, sinks [H]: see `row_statistics`."""
