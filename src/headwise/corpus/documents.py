"""What scoring a corpus hands around: a document as token ids, its score, and what any scorer of documents offers.

`scale/` streams files through a `DocumentScorer` and knows nothing about models; methods implement the protocol and know nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """One document. ids: token ids [n] int32, empty if `reason` says why it cannot be scored ("no text", "not valid text", "too short")."""

    ids: NDArray[np.int32]
    reason: str | None = None


@dataclass(frozen=True)
class DocumentScore:
    """One row of the score table; losses are in nats per scored token.

    loss_base, loss_ref: mean loss of the model as it is, and without the chosen heads. score: (loss_ref - loss_base) / loss_base
    with loss_base floored (Hua et al. 2025, eq. 5); negative values are real. All three are NaN if the document was not scored.
    n_tokens: tokens of the document. n_scored: tokens with a loss (the first of each window has none). truncated: tokens were left out.
    flagged: scored, but not to be ranked (too short, loss at the floor). reason: why it was flagged or not scored, or None.
    """

    loss_base: float
    loss_ref: float
    score: float
    n_tokens: int
    n_scored: int
    truncated: bool = False
    flagged: bool = False
    reason: str | None = None

    @classmethod
    def missing(cls, reason: str, n_tokens: int = 0) -> DocumentScore:
        """The row of a document that has no score."""
        nan = float("nan")
        return cls(nan, nan, nan, n_tokens, 0, False, True, reason)


class DocumentScorer(Protocol):
    """Scores documents. The same list of documents gives the same scores, bit for bit, whatever was scored before."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that could change a score (model, heads, dtype, lengths, ...), as JSON data. Results with another one never mix."""
        ...

    def encode(self, texts: Sequence[object]) -> list[Encoded]:
        """Texts to token ids; called from several threads at once. What is not a usable text gets a reason and never an error."""
        ...

    def score(self, documents: Sequence[Encoded]) -> list[DocumentScore]:
        """One score per document, in order; called from one thread. Batches are formed inside, from this list alone."""
        ...
