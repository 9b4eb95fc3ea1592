"""Needles: a sentence that holds an answer, and a question about it. Bundled ones and the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.text import read_json_lines

FIELDS = ("needle", "question", "answer")


@dataclass(frozen=True)
class Needle:
    """A fact, a question about it and the answer.

    Attributes:
        needle: the sentence to hide.
        question: what is asked.
        answer: occurs exactly once in `needle`.
        answer_prefix: opens the answer for base models; may be empty.

    Raises:
        PromptError: a field is empty or the answer does not occur exactly once.
    """

    needle: str
    question: str
    answer: str
    answer_prefix: str = ""

    def __post_init__(self) -> None:
        for name in FIELDS:
            if not getattr(self, name).strip():
                raise PromptError(f"a needle needs a {name} that is not empty")
        if self.needle.count(self.answer) != 1:
            raise PromptError(
                f"the answer {self.answer!r} must occur exactly once in its needle {self.needle!r}; it occurs {self.needle.count(self.answer)} times"
            )

    @property
    def parts(self) -> tuple[str, str, str]:
        """(before, answer, after); the space before the answer belongs to the answer, so that its ids match a generated one."""
        before, after = self.needle.split(self.answer)
        space = " " if before.endswith(" ") else ""
        return before.removesuffix(" "), space + self.answer, after


def bundled_needles(split: str | None = None) -> list[Needle]:
    """The needles that come with headwise.

    Args:
        split: `detect` (16, for finding heads), `test` (16 others, for tests and reports) or None for all.
    """
    text = resources.files("headwise.prompts").joinpath("data/needles.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [_needle(row) for row in rows if split in (None, row["split"])]


def read_needles(path: str | Path) -> list[Needle]:
    """Needles of a JSON-lines file with the fields needle, question, answer and, if wanted, answer_prefix.

    Raises:
        PromptError: the file cannot be read or holds no needle, or a line is no needle; file and line are named.
    """
    needles = []
    for place, row in read_json_lines(path, "needles", PromptError):
        if not isinstance(row, Mapping) or any(name not in row for name in FIELDS):
            raise PromptError(f"{place}: every needle needs the fields {', '.join(FIELDS)}")
        for name in (*FIELDS, "answer_prefix"):
            if not isinstance(row.get(name, ""), str) and not (name == "answer_prefix" and row[name] is None):
                raise PromptError(f"{place}: {name} must be a text; got {str(row[name])[:60]!r}")
        try:
            needles.append(_needle(row))
        except PromptError as error:
            raise PromptError(f"{place}: {error}") from error
    if not needles:
        raise PromptError(f"{path} holds no needle; write one JSON object per line with {', '.join(FIELDS)}")
    return needles


def _needle(row: Mapping[str, Any]) -> Needle:
    return Needle(row["needle"], row["question"], row["answer"], row.get("answer_prefix") or "")
