"""The file of pairs: JSON lines with a question, its documents, and both answers; how they were made stands in a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import read_json_rows
from headwise.methods.rhio.filters import Pair
from headwise.prompts.grounded import read_grounded
from headwise.prompts.passages import Passage, passage_of

WANTED = '{"question": "...", "documents": ["..."], "faithful": "...", "unfaithful": "..."}'


@dataclass(frozen=True)
class PairRow:
    """A line of the file, as training takes it.

    Attributes:
        question: What is asked.
        documents: What the faithful answer rests on.
        faithful: The answer to be learnt behind `[POS]`.
        unfaithful: The one behind `[NEG]`; empty where only faithful ones are learnt.
        name: What messages call it.
    """

    question: str
    documents: tuple[Passage, ...]
    faithful: str
    unfaithful: str
    name: str = ""


def lines_of(pairs: Sequence[Pair]) -> bytes:
    """The file's content."""
    return "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in pairs).encode()


def read_pairs(path: Path | str) -> list[PairRow]:
    """The rows of a file that `headwise train unfaithful` wrote, or of one like it.

    Raises:
        PromptError: It cannot be read, holds nothing, or a row lacks something (its place is named).
    """
    found = [_read(row, place) for place, row in read_json_rows(Path(path), "pairs of answers", PromptError)]
    if not found:
        raise PromptError(f"{path} holds no pairs of answers; make it with headwise train unfaithful")
    return found


def read_references(path: Path | str) -> list[PairRow]:
    """Questions with documents and their first reference answer, for plain training; their unfaithful answer is empty.

    Args:
        path: Pairs, or whatever `read_grounded` reads.

    Raises:
        PromptError: As `read_pairs` and `read_grounded`; or no question has an answer.
    """
    first = next(read_json_rows(Path(path), "questions", PromptError), ("", None))[1]
    if isinstance(first, dict) and "unfaithful" in first:
        return read_pairs(path)
    records = [one for one in read_grounded(path) if one.references and one.documents and one.answerable]
    if not records:
        raise PromptError(f"{path} holds no question with documents and a reference answer")
    return [PairRow(one.question, one.documents, one.references[0], "", one.name) for one in records]


def _row(pair: Pair) -> dict[str, Any]:
    row = pair.record.row()
    named = {"id": row["id"]} if "id" in row else {}
    answers = {"faithful": pair.faithful.text, "unfaithful": pair.unfaithful.text}
    support = {"faithful_support": round(pair.faithful.support, 6), "unfaithful_support": round(pair.unfaithful.support, 6)}
    return named | {"question": row["question"], "documents": row["documents"]} | answers | support


def _read(row: Any, place: str) -> PairRow:
    texts = ("question", "faithful", "unfaithful")
    if not isinstance(row, dict) or not isinstance(row.get("documents"), list) or not all(isinstance(row.get(name), str) for name in texts):
        raise PromptError(f"{place}: expected {WANTED}")
    if empty := [name for name in texts if not row[name].strip()]:
        raise PromptError(f"{place}: {empty[0]} is empty")
    if not row["documents"]:
        raise PromptError(f"{place}: there are no documents")
    if row["faithful"].strip() == row["unfaithful"].strip():
        raise PromptError(f"{place}: both answers are the same")
    documents = tuple(passage_of(one, place) for one in row["documents"])
    return PairRow(row["question"], documents, row["faithful"], row["unfaithful"], str(row.get("id", "")))
