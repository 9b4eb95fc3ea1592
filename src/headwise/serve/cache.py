"""Passage sets that were computed once, kept for the next query over them, bounded by their tokens."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from headwise.runtime.passage_index import PassageIndex, Text, as_passage


def passage_key(passages: Sequence[Text]) -> bytes:
    """The same for the same passages in the same order, and (SHA-256) for no others. Lengths are part of it, so nothing can run together."""
    digest = hashlib.sha256()
    for passage in map(as_passage, passages):
        for part in (passage.title.encode(), passage.text.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.digest()


class IndexCache:
    """The most recently used indexes; of one thread only.

    Attributes:
        limit: Most tokens of all of them together.
        tokens: Those that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.tokens = limit, 0
        self._kept: OrderedDict[bytes, PassageIndex] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> PassageIndex | None:
        """The index, which counts as used now; None if it is not kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, index: PassageIndex) -> None:
        """Keep a new index; the least recently used ones go.

        Args:
            key: Of its passages, see `passage_key`.
            index: One that is larger than the limit by itself is not kept, and displaces nothing.
        """
        if index.tokens > self.limit or key in self._kept:
            return
        self._kept[key] = index
        self.tokens += index.tokens
        while self.tokens > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.tokens -= oldest.tokens

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self.tokens = 0
