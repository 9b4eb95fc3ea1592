"""The types of corpus scoring: documents as token ids, their scores, the protocol of scorers, and the table of scores.

`corpus/` streams files through a `DocumentScorer` and knows nothing about models; methods implement the protocol and know nothing about files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.corpus.options import Config

HASH_KEY, CONFIG_KEY = b"headwise.config_hash", b"headwise.config"  # metadata of a score table
LOSSES = ("loss_base", "loss_ref", "score")


@dataclass(frozen=True)
class Encoded:
    """One document.

    Attributes:
        ids: Token ids [n] int32, empty if there is a reason.
        reason: Why it cannot be scored ("no text", "not valid text", "too short"), or None.
    """

    ids: NDArray[np.int32]
    reason: str | None = None


@dataclass(frozen=True)
class DocumentScore:
    """One row of the score table; losses are in nats per scored token, and NaN, as the score, if the document was not scored.

    Attributes:
        loss_base: Mean loss of the model as it is.
        loss_ref: Mean loss without the chosen heads.
        score: (loss_ref - loss_base) / loss_base with loss_base floored (Hua et al. 2025, eq. 5); negative values are real.
        n_tokens: Tokens of the document.
        n_scored: Tokens with a loss (the first of each window has none).
        truncated: Tokens were left out.
        flagged: Scored, but not to be ranked (too short, loss at the floor).
        reason: Why it was flagged or not scored, or None.
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
        """The row of a document that has no score: flagged, with NaN for all losses.

        Args:
            reason: Why there is none.
            n_tokens: Tokens of the document, if it got that far.
        """
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


def encode_documents(tokenizer: Any, texts: Sequence[object], vocabulary: int) -> list[Encoded]:
    """Token ids of texts; what is no text gets a reason, never an error, so that rows stay aligned.

    Safe in several threads, once the tokenizer has encoded anything at all.

    Args:
        tokenizer: A Hugging Face tokenizer; no special tokens are put in.
        texts: Anything; missing values of tables come as None or NaN.
        vocabulary: Number of ids that the model knows.

    Returns:
        One per text. Reasons: `no text`, `not valid text` (lone surrogates, or no string), `token outside of the vocabulary` (a model that was
        not resized for its tokenizer would fail in the middle of a job).
    """
    reasons = [_unusable(text) for text in texts]
    usable = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    rows = iter(tokenizer(usable, **options)["input_ids"] if usable else [])
    found = []
    for reason in reasons:
        ids = np.asarray(next(rows) if reason is None else [], dtype=np.int32)
        if len(ids) and ids.max() >= vocabulary:
            ids, reason = ids[:0], "token outside of the vocabulary"
        found.append(Encoded(ids, reason))
    return found


def _unusable(text: object) -> str | None:
    """Why something is no text to score, or None."""
    if text is None or (isinstance(text, float) and math.isnan(text)) or (isinstance(text, str) and not text.strip()):
        return "no text"
    try:
        return None if isinstance(text, str) and text.encode() else "not valid text"
    except UnicodeEncodeError:  # lone surrogates
        return "not valid text"


class Window(NamedTuple):
    """Tokens of a document that are read in one pass. All but the first have a loss.

    Attributes:
        document: Number of the document.
        start: Its first token.
        stop: The token behind its last one.
    """

    document: int
    start: int
    stop: int

    @property
    def scored(self) -> int:
        """Tokens with a loss."""
        return self.stop - self.start - 1


def windows_of(lengths: Sequence[int], size: int, most: int | None = None) -> list[Window]:
    """Windows side by side, the last one of a document shorter. A window of one token has nothing to predict and is left out.

    Args:
        lengths: Tokens of each document.
        size: Tokens of a window, at least 2.
        most: Windows per document, at most; None: all.

    Returns:
        In the order of the documents and of their tokens.

    Raises:
        HeadwiseError: For a size below 2.
    """
    if size < 2:
        raise HeadwiseError(f"windows need at least 2 tokens, of which the second is predicted; got {size}")
    found = []
    for document, length in enumerate(lengths):
        starts = range(0, length, size)[:most]
        found += [Window(document, start, min(start + size, length)) for start in starts if length - start > 1]
    return found


def batches_of(windows: Sequence[Window], tokens: int) -> list[list[Window]]:
    """Batches for passes of the model; they depend on this list of windows alone.

    Windows are sorted by length, so that hardly any padding is needed; the longest come first, so that memory runs out at once or never.

    Args:
        windows: In any order.
        tokens: Most tokens of a batch, padding counted. A single longer window is a batch of its own.

    Returns:
        Every window once.
    """
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda w: (-w.scored, w)):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].scored > tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


@dataclass(frozen=True)
class Rows:
    """A chunk of a file.

    Attributes:
        first: Number of the first row in the file.
        texts: One per row; None where there is none.
        domains: One per row.
        ids: One per row.
        problems: Place in the chunk -> (reason, detail) of a row without a text.
        position: Share of the file read so far.
    """

    first: int
    texts: list[str | None]
    domains: list[str | None]
    ids: list[str | None]
    problems: dict[int, tuple[str, str]]
    position: float = 0.0


def schema_of(config: Config | None = None, with_id: bool = False) -> Any:
    """Columns of a score table: row, id (if there is one), domain, and the fields of `DocumentScore`.

    `row` is int64, from 0: the place in the file (of JSON lines: the line). `loss_base`, `loss_ref` and `score` are float32, null if the
    document was not scored; `reason` says why then.

    Args:
        config: Its hash and its JSON text become the schema's metadata; None: there is none.
        with_id: Whether there is a column `id`.

    Returns:
        A pyarrow Schema.
    """
    from headwise.corpus.arrow import pa

    names = [
        pa.field("row", pa.int64(), nullable=False),
        *([pa.field("id", pa.string())] if with_id else []),
        pa.field("domain", pa.string()),
    ]
    numbers = [pa.field(name, pa.float32()) for name in LOSSES]
    counts = [pa.field(name, pa.int32(), nullable=False) for name in ("n_tokens", "n_scored")]
    marks = [pa.field(name, pa.bool_(), nullable=False) for name in ("truncated", "flagged")]
    fields = [*names, *numbers, *counts, *marks, pa.field("reason", pa.string())]
    metadata = {HASH_KEY: config.hash, CONFIG_KEY: json.dumps(config.data, sort_keys=True)} if config else None
    return pa.schema(fields, metadata=metadata)


def score_batch(
    scorer: DocumentScorer, batch: Any, text: str = "text", domain: str | None = None, id: str | None = None, first_row: int = 0
) -> Any:
    """Scores of a RecordBatch: one row for each of its rows, in order. No files, no threads.

    This is what to call from Spark, datatrove or any other engine; the runners of this package do the same in two steps. The whole batch is
    one call of `scorer.score`, which is one of the things that scores depend on in the last digits.

    Args:
        scorer: Any scorer.
        batch: A pyarrow RecordBatch. Rows without a usable text get null scores and a reason.
        text: Name of the column with the texts.
        domain: Name of the column with the domains, if there is one.
        id: Name of the column with the ids, if there is one.
        first_row: Number of the first row.

    Returns:
        A pyarrow RecordBatch with the columns of `schema_of`.

    Raises:
        HeadwiseError: As `score_rows`.
    """
    from headwise.corpus.columns import rows_of

    texts, domains, ids, found, _ = (
        zip(*rows_of(batch, text, domain, id), strict=True) if batch.num_rows else ((), (), (), (), ())
    )
    problems = {index: problem for index, problem in enumerate(found) if problem is not None}
    rows = Rows(first_row, list(texts), list(domains), list(ids), problems)
    return score_rows(scorer, rows, scorer.encode(rows.texts), schema_of(with_id=id is not None))[0]


def score_rows(scorer: DocumentScorer, rows: Rows, encoded: Sequence[Encoded], schema: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Scores of one chunk as rows of a score table.

    Args:
        scorer: Any scorer; it is called once.
        rows: Where the documents come from. What has a problem there gets no score, whatever the scorer says.
        encoded: The same documents as token ids.
        schema: Of `schema_of`.

    Returns:
        (RecordBatch of one row per row, one {row, reason, detail} per row without a score).

    Raises:
        HeadwiseError: If the scorer gives another number of scores than there are rows.
    """
    from headwise.corpus.arrow import pa

    scores = scorer.score(encoded)
    if not len(scores) == len(encoded) == len(rows.texts):
        raise HeadwiseError(
            f"the scorer gave {len(scores)} scores of {len(encoded)} encoded documents for {len(rows.texts)} texts"
        )
    scores = [
        DocumentScore.missing(rows.problems[index][0]) if index in rows.problems else score for index, score in enumerate(scores)
    ]
    rejected = [
        {"row": rows.first + index, "reason": score.reason or "no score", "detail": rows.problems.get(index, ("", ""))[1]}
        for index, score in enumerate(scores)
        if math.isnan(score.score)
    ]
    columns: dict[str, Any] = {"row": range(rows.first, rows.first + len(scores)), "id": rows.ids, "domain": rows.domains}
    arrays = []
    for field in schema:
        values = columns[field.name] if field.name in columns else [getattr(score, field.name) for score in scores]
        arrays.append(pa.array(values, field.type, from_pandas=field.name in LOSSES))  # from_pandas: NaN becomes null
    return pa.RecordBatch.from_arrays(arrays, schema=schema), rejected
