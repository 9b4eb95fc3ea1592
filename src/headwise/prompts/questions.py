"""A user's own questions about texts: JSON lines with context, question and answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import read_json_lines

WANTED = '{"context": "...", "question": "...", "answer": "..."}, and if wanted "id" and "answer_prefix"'


@dataclass(frozen=True)
class OwnQuestion:
    """A question about a text.

    Attributes:
        context: The text.
        question: What is asked.
        answers: Expected answers, any of which is right.
        id: Name of the question in results.
        answer_prefix: Opens the answer for base models; may be empty.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    id: str
    answer_prefix: str = ""


def read_questions(path: str | Path) -> list[OwnQuestion]:
    """Questions of a JSON-lines file: `context`, `question`, `answer` (a text or a list of texts), and if wanted `id`, `answer_prefix`.

    Without an `id` the number of the line is it.

    Raises:
        PromptError: A file that cannot be read or holds nothing, a line that is not as above, or an id that comes twice.
    """
    path = Path(path)
    found = [_question(row, place) for place, row in read_json_lines(path, "questions", PromptError)]
    if not found:
        raise PromptError(f"{path} holds no question; write one JSON object per line: {WANTED}")
    seen: set[str] = set()
    for one in found:
        if one.id in seen:
            raise PromptError(f"{path} names two questions {one.id!r}; give every question an id of its own, or none any")
        seen.add(one.id)
    return found


def _question(row: Any, place: str) -> OwnQuestion:
    if not isinstance(row, dict):
        raise PromptError(f"{place}: a question is an object like {WANTED}; got {str(row)[:60]!r}")
    texts = {name: row.get(name) for name in ("context", "question")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"{place}: {name} must be a text that is not empty; a line is {WANTED}")
    answers = row.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text.strip() for text in answers):
        raise PromptError(f"{place}: answer must be a text or a list of texts, none of them empty; a line is {WANTED}")
    prefix, name = row.get("answer_prefix") or "", row.get("id", int(place.rpartition(" ")[2]))
    if not isinstance(prefix, str) or not isinstance(name, str | int):
        raise PromptError(f"{place}: answer_prefix must be a text, and id a text or a number")
    return OwnQuestion(str(texts["context"]), str(texts["question"]), tuple(text.strip() for text in answers), str(name), prefix)
