"""A scorer of documents without a model: scores are hashes of the text. For tests of streams, and to measure what they cost."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwise.corpus.documents import DocumentScore, Encoded
from headwise.heads.plain import checked_seed


class StubScorer:
    """A deterministic `DocumentScorer`; can be pickled. One token per four bytes of text.

    Like a real scorer's, its scores depend on everything in one call of `score` (in the last digits), so that a stream that cuts files in
    another way is found out.
    """

    def __init__(
        self,
        tokens_per_second: float | None = None,
        seed: int = 0,
        min_tokens: int = 0,
        die_once: str | None = None,
        die_after: int = 0,
    ) -> None:
        """A scorer with these habits.

        Args:
            tokens_per_second: Sleep as a model of this speed would take.
            seed: Of the scores, from 0.
            min_tokens: Shorter documents are not scored ("too short").
            die_once: Path of a file; if it does not exist, it is made in call number `die_after` of `score`, and the process kills itself (SIGKILL).
            die_after: See `die_once`.

        Raises:
            HeadwiseError: A seed out of range.
        """
        self._speed, self._seed, self._least = tokens_per_second, checked_seed(seed), min_tokens
        self._die_once, self._die_after, self._calls = die_once, die_after, 0
        self.seconds = 0.0  # spent in `score` so far

    @property
    def description(self) -> Mapping[str, Any]:
        """What its scores depend on."""
        return {"scorer": "stub", "seed": self._seed, "min_tokens": self._least}

    def encode(self, texts: Sequence[object]) -> list[Encoded]:
        """Texts to every fourth byte of their UTF-8 form."""
        return [self._encode(text) for text in texts]

    def score(self, documents: Sequence[Encoded]) -> list[DocumentScore]:
        """loss_base in [1, 2), score in [-0.25, 0.75)."""
        started = time.perf_counter()
        self._maybe_die()
        sums = [zlib.crc32(document.ids.data, self._seed) for document in documents]
        together = zlib.crc32(np.asarray(sums, np.uint32).data) / 2**32 * 1e-4
        scores = [
            DocumentScore.missing(document.reason, len(document.ids))
            if document.reason
            else _score(value, together, len(document.ids))
            for document, value in zip(documents, sums, strict=True)
        ]
        if self._speed is not None:
            wanted = sum(len(document.ids) for document in documents) / self._speed
            time.sleep(max(wanted - (time.perf_counter() - started), 0))
        self.seconds += time.perf_counter() - started
        return scores

    def _encode(self, text: object) -> Encoded:
        nothing = np.empty(0, np.int32)
        if not isinstance(text, str) or not text:
            return Encoded(nothing, "no text")
        try:
            ids = np.frombuffer(text.encode(), np.uint8)[::4].astype(np.int32)
        except UnicodeEncodeError:
            return Encoded(nothing, "not valid text")
        return Encoded(ids, "too short" if len(ids) < self._least else None)

    def _maybe_die(self) -> None:
        self._calls += 1
        if self._die_once is not None and self._calls > self._die_after and not Path(self._die_once).exists():
            Path(self._die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _score(value: int, together: float, count: int) -> DocumentScore:
    base, change = 1 + (value & 0xFFFF) / 2**16, (value >> 16) / 2**16 - 0.25 + together
    return DocumentScore(
        base, base * (1 + change), change, count, max(count - 1, 0), False, count < 8, "short" if count < 8 else None
    )
