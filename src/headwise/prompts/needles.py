"""Needles: a sentence that holds an answer, and a question about it. Bundled ones and the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError

FIELDS = ("needle", "question", "answer")


@dataclass(frozen=True)
class Needle:
    """`answer` occurs exactly once in `needle`; `answer_prefix` opens the answer for base models (may be empty)."""

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
    """The needles that come with headwise: 16 for detection (`detect`), 16 others for tests and reports (`test`)."""
    text = resources.files("headwise.prompts").joinpath("data/needles.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [_needle(row) for row in rows if split in (None, row["split"])]


def read_needles(path: str | Path) -> list[Needle]:
    """Needles of a JSON-lines file with the fields needle, question, answer and, if wanted, answer_prefix."""
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read needles from {path}: {error}") from error
    needles = list(_parse(lines, path))
    if not needles:
        raise PromptError(f"{path} holds no needle; write one JSON object per line with {', '.join(FIELDS)}")
    return needles


def _needle(row: dict[str, Any]) -> Needle:
    return Needle(str(row["needle"]), str(row["question"]), str(row["answer"]), str(row.get("answer_prefix") or ""))


def _parse(lines: Iterable[str], path: Path) -> Iterable[Needle]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield _needle(row)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {number}: no valid JSON ({error.msg})") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise PromptError(f"{path}, line {number}: every needle needs the fields {', '.join(FIELDS)}") from error
        except PromptError as error:
            raise PromptError(f"{path}, line {number}: {error}") from error
