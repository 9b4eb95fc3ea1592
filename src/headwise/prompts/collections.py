"""Collections to rank: passages and queries with ids, from plain JSON lines or a folder in BEIR layout; judgements and runs.

BEIR layout (Thakur et al. 2021): `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`), `qrels/test.tsv` (query, passage,
grade under a header line; also dev, train); .gz too. Judgements may also be in TREC form (query, 0, passage, grade). Where tabs separate,
fields may stand in double quotes, as pandas and spreadsheets write them.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import read_text, split_lines
from headwise.prompts.passages import Passage, passage_of, read_rows

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]
BEIR_HEADER = ["query-id", "corpus-id", "score"]
GRADE = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def read_passages(path: Path, keep_empty: bool = False) -> dict[str, Passage]:
    """Id -> passage. Fields: `_id` or `id` (else the line number from 0), `text`, `title` if wanted; or bare texts.

    Args:
        path: the file.
        keep_empty: keep passages without text and title (`Passage.is_empty`): collections in BEIR layout hold some, and their measures count them.

    Raises:
        PromptError: the file cannot be read, or a line is no passage or an empty one; file and line are named.
    """
    return _by_id(((row, passage_of(row, place, keep_empty)) for place, row in read_rows(path, "passages")), path)


def read_queries(path: Path) -> dict[str, str]:
    """Id -> query. Fields: `_id` or `id` (else the line number from 0), `text` or `query`; or bare texts."""
    return _by_id(((row, _query(row, place)) for place, row in read_rows(path, "queries")), path)


def beir_files(folder: Path, split: str | None = None) -> tuple[Path, Path, Path]:
    """Files of a folder in BEIR layout.

    Args:
        folder: it holds `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, each plain or .gz.
        split: whose judgements (`test`, `dev`, `train`); None: test, or the only ones there are.

    Returns:
        Paths of corpus, queries and judgements.

    Raises:
        PromptError: a file is missing, or the split has to be chosen; what there is is named.
    """
    if not folder.is_dir():
        raise PromptError(f"no such folder: {folder}; give one in BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv)")
    found = []
    for name in ("corpus.jsonl", "queries.jsonl"):
        paths = [folder / f"{name}{end}" for end in ("", ".gz") if (folder / f"{name}{end}").is_file()]
        if not paths:
            raise PromptError(f"{folder} is not in BEIR layout: {name} (or {name}.gz) is missing")
        found.append(paths[0])
    known = {path.name.split(".tsv")[0]: path for path in sorted((folder / "qrels").glob("*.tsv*"), reverse=True)}
    known = {name: path for name, path in known.items() if path.name in (f"{name}.tsv", f"{name}.tsv.gz") and path.is_file()}
    if not known:
        raise PromptError(f"{folder} is not in BEIR layout: qrels/test.tsv (or .gz, or another split) is missing")
    if split is None:
        split = "test" if "test" in known else next(iter(known)) if len(known) == 1 else None
    if split not in known:
        asked = "choose one with --split" if split is None else f"no split {split!r}"
        raise PromptError(f"{folder / 'qrels'} holds {', '.join(sorted(known))}; {asked}")
    return found[0], found[1], known[split]


def read_qrels(path: Path) -> Qrels:
    """Query -> passage -> grade, from BEIR or TREC judgements.

    A first line `query-id corpus-id score` is a header; nothing else is. Grades are whole numbers; a file may write all of them, never
    some, with decimals (1.0).

    Raises:
        PromptError: the file cannot be read, or a line is no judgement (its number is named).
    """
    out: Qrels = {}
    decimals: bool | None = None
    for number, fields in _fields(path, "judgements"):
        if number == 1 and [field.lower() for field in fields] == BEIR_HEADER:
            continue
        place = f"{path}, line {number}"
        if len(fields) not in (3, 4) or not GRADE.fullmatch(fields[-1]):
            raise PromptError(f"{place}: expected query, passage and grade (or query, 0, passage, grade)")
        if decimals not in (None, "." in fields[-1]):
            raise PromptError(
                f"{place}: the grade {fields[-1]} is written otherwise than those above; write all with decimals or none"
            )
        decimals = "." in fields[-1]
        whole, _, rest = fields[-1].partition(".")
        if rest.strip("0"):
            raise PromptError(f"{place}: the grade {fields[-1]} is no whole number; grades are 0, 1, 2 and so on")
        if len(whole) > 20 or not -(2**63) <= int(whole) < 2**63:
            raise PromptError(f"{place}: the grade {whole[:20]}... is beyond 64 bits; grades are small whole numbers")
        out.setdefault(fields[0], {})[fields[-2]] = int(whole)
    return _some(out, path, "judgements")


def read_run(path: Path) -> Run:
    """Query -> passage -> score of a TREC run (query, Q0, passage, rank, score, tag).

    Raises:
        PromptError: the file cannot be read, or a line is none of a run or has no finite score (its number is named).
    """
    out: Run = {}
    for number, fields in _fields(path, "run"):
        try:
            query, _, passage, _, score, _ = fields
            value = float(score)
        except ValueError as error:
            raise PromptError(f"{path}, line {number}: expected query, Q0, passage, rank, score, tag") from error
        if not math.isfinite(value):
            raise PromptError(f"{path}, line {number}: the score {score} is not a finite number")
        out.setdefault(query, {})[passage] = value
    return _some(out, path, "run")


def trec_lines(run: Mapping[str, Mapping[str, float]], tag: str) -> Iterator[str]:
    """Lines of a TREC run, best passage first; equal scores in the order given.

    Args:
        run: query -> passage -> score.
        tag: name of the run, the last field of every line; without white space.

    Yields:
        `query Q0 passage rank score tag`, without a line end; ranks count from 1, scores have nine digits.
    """
    for query, scores in run.items():
        ordered = sorted(scores, key=lambda passage: -scores[passage])
        for rank, passage in enumerate(ordered, 1):
            yield f"{query} Q0 {passage} {rank} {scores[passage]:.9g} {tag}"


def _query(row: Any, place: str) -> str:
    text = (row.get("text") or row.get("query", row.get("text"))) if isinstance(row, Mapping) else row
    if isinstance(text, str) and not text.strip():
        raise PromptError(f"{place}: a query is empty; leave it out, or give it a text")
    if not isinstance(text, str):
        raise PromptError(f"{place}: a query is a text, or an object with text (or query); got {str(row)[:60]!r}")
    return text


def _by_id(rows: Iterator[tuple[Any, Any]], path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, (row, value) in enumerate(rows):
        given = row.get("_id", row.get("id")) if isinstance(row, Mapping) else None
        key = str(number if given is None else given)
        if key in out:
            raise PromptError(f"{path}: the id {key[:60]!r} occurs twice")
        if not key or any(c.isspace() for c in key):
            raise PromptError(f"{path}: the id {key[:60]!r} is empty or holds white space, which a TREC run cannot")
        out[key] = value
    return out


def _fields(path: Path, what: str) -> Iterator[tuple[int, Sequence[str]]]:
    for number, line in enumerate(split_lines(read_text(path, what, PromptError)), 1):
        if line.strip():
            yield number, _tab_separated(line.strip(), f"{path}, line {number}") if "\t" in line else line.split()


def _tab_separated(line: str, place: str) -> list[str]:
    try:
        (fields,) = csv.reader([line], delimiter="\t", strict=True)
    except csv.Error as error:
        raise PromptError(f"{place}: a field begins with a double quote that is never closed, or goes on behind it") from error
    return fields


def _some(found: dict[str, Any], path: Path, what: str) -> dict[str, Any]:
    if not found:
        raise PromptError(f"{path} holds no {what}")
    return found
