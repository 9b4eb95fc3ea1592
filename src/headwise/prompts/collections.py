"""Collections to rank: passages and queries with ids, from plain JSON lines or a folder in BEIR layout; judgements and runs.

BEIR layout (Thakur et al. 2021): `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`), `qrels/test.tsv` (query, passage,
grade under a header line); .gz too. Judgements may also be in TREC form (query, 0, passage, grade).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.prompts.passages import Passage
from headwise.prompts.ranking_data import passage_of, read_lines

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def read_passages(path: Path) -> dict[str, Passage]:
    """Id -> passage. Fields: `_id` or `id` (else the line number from 0), `text`, `title` if wanted; or bare texts."""
    return _by_id(((row, passage_of(row, place)) for row, place in _rows(path, "passages")), path)


def read_queries(path: Path) -> dict[str, str]:
    """Id -> query. Fields: `_id` or `id` (else the line number from 0), `text` or `query`; or bare texts."""
    return _by_id(((row, _query(row, place)) for row, place in _rows(path, "queries")), path)


def beir_files(folder: Path) -> tuple[Path, Path, Path]:
    """(corpus, queries, qrels) of a folder in BEIR layout. Raises `PromptError` naming what is missing."""
    if not folder.is_dir():
        raise PromptError(f"no such folder: {folder}; give one in BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv)")
    found = []
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        paths = [folder / f"{name}{end}" for end in ("", ".gz") if (folder / f"{name}{end}").is_file()]
        if not paths:
            raise PromptError(f"{folder} is not in BEIR layout: {name} (or {name}.gz) is missing")
        found.append(paths[0])
    return found[0], found[1], found[2]


def read_qrels(path: Path) -> Qrels:
    """Query -> passage -> grade, from BEIR or TREC judgements."""
    out: Qrels = {}
    for number, fields in _fields(path, "judgements"):
        if number == 1 and not fields[-1].lstrip("-").isdecimal():
            continue  # header line
        if len(fields) not in (3, 4) or not fields[-1].lstrip("-").isdecimal():
            raise PromptError(f"{path}, line {number}: expected query, passage and grade (or query, 0, passage, grade)")
        out.setdefault(fields[0], {})[fields[-2]] = int(fields[-1])
    return _some(out, path, "judgements")


def read_run(path: Path) -> Run:
    """Query -> passage -> score of a TREC run (query, Q0, passage, rank, score, tag)."""
    out: Run = {}
    for number, fields in _fields(path, "run"):
        try:
            query, _, passage, _, score, _ = fields
            out.setdefault(query, {})[passage] = float(score)
        except ValueError as error:
            raise PromptError(f"{path}, line {number}: expected query, Q0, passage, rank, score, tag") from error
    return _some(out, path, "run")


def trec_lines(run: Mapping[str, Mapping[str, float]], tag: str) -> Iterator[str]:
    """Lines of a TREC run, best passage first; equal scores in the order given."""
    for query, scores in run.items():
        ordered = sorted(scores, key=lambda passage: -scores[passage])
        for rank, passage in enumerate(ordered, 1):
            yield f"{query} Q0 {passage} {rank} {scores[passage]:.9g} {tag}"


def _query(row: Any, place: str) -> str:
    text = row if isinstance(row, str) else (row.get("text") or row.get("query")) if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{place}: a query is a text, or an object with text (or query); got {str(row)[:60]!r}")
    return text


def _rows(path: Path, what: str) -> Iterator[tuple[Any, str]]:
    for number, row in enumerate(read_lines(path, what), 1):
        yield row, f"{path}, entry {number}"


def _by_id(rows: Iterator[tuple[Any, Any]], path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, (row, value) in enumerate(rows):
        given = row.get("_id", row.get("id")) if isinstance(row, Mapping) else None
        key = str(number if given is None else given)
        if key in out:
            raise PromptError(f"{path}: the id {key!r} occurs twice")
        if not key or any(c.isspace() for c in key):
            raise PromptError(f"{path}: the id {key!r} is empty or holds white space, which a TREC run cannot")
        out[key] = value
    return out


def _fields(path: Path, what: str) -> Iterator[tuple[int, Sequence[str]]]:
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {what} from {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.split("\t") if "\t" in line else line.split()


def _some(found: dict[str, Any], path: Path, what: str) -> dict[str, Any]:
    if not found:
        raise PromptError(f"{path} holds no {what}")
    return found
