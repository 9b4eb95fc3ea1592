"""AttentionInfluence: the relative loss increase of a text when retrieval heads are ablated (Hua et al. 2025, arXiv:2505.07293).

score = (loss with the heads ablated - loss) / loss, both mean losses per token of one document (eq. 5). Compare scores inside one domain only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.branches import LossHead, branch_losses, branches, first_changed_layer
from headwise.corpus.documents import DocumentScore, Encoded, Window, batches_of, encode_documents, windows_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.methods.influence.defaults import CPU_TOKENS, FLOOR, MANY_TOKENS, MAX_LEN, MIN_TOKENS, MODE
from headwise.models.fingerprint import weights_digest
from headwise.models.model import Model, describe_model, device_of
from headwise.prompts.encoder import PieceEncoder

SCORE_VERSION = 1


def influence(base: float, changed: float, floor: float) -> float:
    """Relative loss without some heads: (changed - base) / max(base, floor) (Hua et al. 2025, arXiv:2505.07293, eq. 5).

    For positive base above the floor it ranks as 1 - base / changed, which the paper's figure 3 shows.

    Args:
        base: Mean loss in nats of the model.
        changed: Mean loss in nats with the heads ablated.
        floor: Above 0; keeps texts that are known by heart (base near 0) from any score that one likes.

    Returns:
        Without unit; 0 if the heads make no difference, negative if the loss falls.
    """
    return (changed - base) / max(base, floor)


class AttentionInfluence:
    """A `DocumentScorer`: one pass gives the loss of the model and the loss without some heads."""

    def __init__(
        self,
        model: Model,
        heads: Heads,
        mode: str = MODE,
        *,
        means: Tensor | None = None,
        max_len: int | None = None,
        max_windows: int | None = None,
        tokens_per_batch: int | None = None,
        min_tokens: int = MIN_TOKENS,
        floor: float = FLOOR,
    ) -> None:
        """Check everything on a few tokens; nothing is scored yet.

        Args:
            model: The model whose losses count.
            heads: Retrieval heads, best found on the proxy task (`methods/influence/proxy.py`).
            mode: What happens to them, see `ablate`.
            means: For mode `mean`, see `ablate`.
            max_len: Longest pass in tokens, BOS included (None: the model's positions, at most `MAX_LEN`). Longer documents are cut into
                windows of that length, side by side.
            max_windows: Windows of a document that are read (None: all).
            tokens_per_batch: Padding included (None: `CPU_TOKENS` on a CPU, `MANY_TOKENS` elsewhere).
            min_tokens: A document with fewer scored tokens is scored and flagged.
            floor: A document with a lower loss in nats is scored and flagged.

        Raises:
            HeadwiseError: For options out of range, no heads, heads of another model, or a model whose losses cannot be chunked.
        """
        positions, device = model.positions, device_of(model.hf).type
        self.max_len = min(MAX_LEN, positions or MAX_LEN) if max_len is None else max_len
        usual = CPU_TOKENS if device == "cpu" else MANY_TOKENS
        self.tokens_per_batch = usual if tokens_per_batch is None else tokens_per_batch
        self.max_windows, self.min_tokens, self.floor = max_windows, min_tokens, floor
        if positions is not None and self.max_len > positions:
            raise HeadwiseError(f"max_len {self.max_len} is more than the model's {positions} positions; choose at most that")
        for name, least in (("max_windows", 1), ("tokens_per_batch", 1), ("min_tokens", 0)):
            if (given := getattr(self, name)) is not None and given < least:
                raise HeadwiseError(f"{name} must be at least {least}; got {given}")
        if not (floor > 0 and math.isfinite(floor)):
            raise HeadwiseError(f"the floor must be above 0 nats; got {floor:g}")
        heads = model.check(heads)
        self.model, self.heads, self.mode, self.means = model, heads, mode, means
        self.first_layer = first_changed_layer(heads)
        self._bos = PieceEncoder(model.tokenizer).bos
        self._size = self.max_len - len(self._bos)
        windows_of([], self._size)
        with branches(model.hf, heads, mode, means):  # refuses what cannot be ablated
            self._head = LossHead(model.hf)
        self._weights = weights_digest(model.hf)

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that could change a score (as JSON data), the model and the versions of libraries under `model`."""
        means = None if self.means is None else hashlib.sha256(self.means.float().cpu().numpy().tobytes()).hexdigest()[:16]
        return {
            "scorer": "attention-influence", "score_version": SCORE_VERSION, "weights": self._weights,
            "heads": sorted(str(head) for head in self.heads), "mode": self.mode, "means": means,
            "first_changed_layer": self.first_layer, "max_len": self.max_len, "max_windows": self.max_windows, "bos": list(self._bos),
            "tokens_per_batch": self.tokens_per_batch, "min_tokens": self.min_tokens, "floor": self.floor,
            "model": describe_model(self.model),
        }  # fmt: skip

    def encode(self, texts: Sequence[object]) -> list[Encoded]:
        """Token ids without special tokens; an empty list and a reason for what is no text."""
        return encode_documents(self.model.tokenizer, texts, self._head.vocabulary)

    def score(self, documents: Sequence[Encoded]) -> list[DocumentScore]:
        """Scores in the order of the documents; what cannot be scored has NaN and a reason."""
        sums, scored = np.zeros((len(documents), 2)), np.zeros(len(documents), dtype=np.int64)
        for window, losses in self._losses(documents):
            sums[window.document] += losses.sum(axis=1, dtype=np.float64)
            scored[window.document] += window.scored
        return [self._row(document, sums[i], int(scored[i])) for i, document in enumerate(documents)]

    def token_losses(self, document: Encoded) -> NDArray[np.float32]:
        """Losses [2, n] of one document's tokens, of the unchanged model and with the heads ablated. NaN: none (a window's first token)."""
        table = np.full((2, len(document.ids)), np.nan, dtype=np.float32)
        for window, losses in self._losses([document]):
            table[:, window.start + 1 : window.stop] = losses
        return table

    def span_scores(self, document: Encoded, spans: Sequence[tuple[int, int]]) -> list[DocumentScore]:
        """Scores of parts of one document, each read in its place, such as steps of a derivation (AIR, Liu et al. 2025, arXiv:2512.13279).

        Args:
            document: As `encode` gives it.
            spans: Tokens [start, stop) of each part.

        Returns:
            One row per span; NaN and a reason where nothing can be scored.

        Raises:
            HeadwiseError: For a span outside of the document.
        """
        table, found = self.token_losses(document).astype(np.float64), []
        for start, stop in spans:
            if not 0 <= start < stop <= len(document.ids):
                raise HeadwiseError(f"span [{start}, {stop}) does not lie in a document of {len(document.ids)} tokens")
            part = table[:, start:stop][:, ~np.isnan(table[0, start:stop])]
            found.append(self._row(Encoded(document.ids[start:stop]), part.sum(axis=1), part.shape[1]))
        return found

    def _losses(self, documents: Sequence[Encoded]) -> list[tuple[Window, NDArray[np.float32]]]:
        """Windows of all documents with their losses [2, tokens - 1]."""
        model = self.model.hf
        found: list[tuple[Window, NDArray[np.float32]]] = []
        windows = windows_of([len(document.ids) for document in documents], self._size, self.max_windows)
        with branches(model, self.heads, self.mode, self.means) as run:
            for batch in batches_of(windows, self.tokens_per_batch):
                texts = [documents[window.document].ids[window.start : window.stop] for window in batch]
                found += zip(batch, branch_losses(run, self._head, texts, self._bos, device_of(model)), strict=True)
        return found

    def _row(self, document: Encoded, sums: NDArray[np.float64], scored: int) -> DocumentScore:
        """The row of a document (or a part of one) from the sums [2] of its losses."""
        tokens = len(document.ids)
        if document.reason or not scored:
            return DocumentScore.missing(document.reason or "too short", tokens)
        base, changed = (float(total) / scored for total in sums)
        if not (math.isfinite(base) and math.isfinite(changed)):
            return DocumentScore.missing("loss not finite", tokens)
        reason = "few tokens" if scored < self.min_tokens else "loss at the floor" if base < self.floor else None
        cut = self.max_windows is not None and tokens > self.max_windows * self._size
        score = influence(base, changed, self.floor)
        return DocumentScore(base, changed, score, tokens, scored, cut, reason is not None, reason)
