"""Score tables: their columns, and the pure core that turns rows of text into rows of scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from headwise.corpus.arrow import pa
from headwise.corpus.columns import rows_of
from headwise.corpus.documents import DocumentScore, DocumentScorer, Encoded
from headwise.corpus.options import Config
from headwise.corpus.readers import Rows
from headwise.heads.errors import HeadwiseError

HASH_KEY, CONFIG_KEY = b"headwise.config_hash", b"headwise.config"
_LOSSES = ("loss_base", "loss_ref", "score")


def schema_of(config: Config | None = None, with_id: bool = False) -> Any:
    """Columns of a score table: row, id (if there is one), domain, and the fields of `DocumentScore`.

    row: int64, from 0, the place in the file (of JSONL: the line). loss_base, loss_ref, score: float32, null if the document was not scored;
    reason says why then. With a `config`, its hash and its JSON text are the schema's metadata.
    """
    names = [
        pa.field("row", pa.int64(), nullable=False),
        *([pa.field("id", pa.string())] if with_id else []),
        pa.field("domain", pa.string()),
    ]
    numbers = [pa.field(name, pa.float32()) for name in _LOSSES]
    counts = [pa.field(name, pa.int32(), nullable=False) for name in ("n_tokens", "n_scored")]
    marks = [pa.field(name, pa.bool_(), nullable=False) for name in ("truncated", "flagged")]
    fields = [*names, *numbers, *counts, *marks, pa.field("reason", pa.string())]
    metadata = {HASH_KEY: config.hash, CONFIG_KEY: json.dumps(config.data, sort_keys=True)} if config else None
    return pa.schema(fields, metadata=metadata)


def score_batch(
    scorer: DocumentScorer, batch: Any, text: str = "text", domain: str | None = None, id: str | None = None, first_row: int = 0
) -> Any:
    """Scores of a RecordBatch: one row for each of its rows, in order, with the columns of `schema_of`. No files, no threads.

    text, domain, id: names of columns; rows without a usable text get null scores and a reason. first_row: number of the first row. This is
    what to call from Spark, datatrove or any other engine; the runners of this package do the same in two steps. The whole batch is one call of
    `scorer.score`, which is one of the things that scores depend on in the last digits.
    """
    texts, domains, ids, found, _ = (
        zip(*rows_of(batch, text, domain, id), strict=True) if batch.num_rows else ((), (), (), (), ())
    )
    problems = {index: problem for index, problem in enumerate(found) if problem is not None}
    rows = Rows(first_row, list(texts), list(domains), list(ids), problems)
    return score_rows(scorer, rows, scorer.encode(rows.texts), schema_of(with_id=id is not None))[0]


def score_rows(scorer: DocumentScorer, rows: Rows, encoded: Sequence[Encoded], schema: Any) -> tuple[Any, list[dict[str, Any]]]:
    """(RecordBatch of one row per row, one {row, reason, detail} per row without a score)."""
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
        arrays.append(pa.array(values, field.type, from_pandas=field.name in _LOSSES))  # from_pandas: NaN becomes null
    return pa.RecordBatch.from_arrays(arrays, schema=schema), rejected
