"""A question with a passage that answers it, and the same passage with another answer in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.heads.errors import PromptError
from headwise.prompts.passages import Passage


@dataclass(frozen=True)
class KnowledgeRecord:
    """A question that can be answered from memory or from a passage.

    Attributes:
        question: What is asked, or the beginning of a sentence that the answer completes.
        answers: Right by memory, at least one; the first one is the one that stands in the passage.
        passage: It mentions `answers[0]`; None where there is none.
        swapped: The same passage in which every mention of the answer is replaced by `swapped_answer`.
        swapped_answer: What the swapped passage says; empty if there is none.
        kind: Type of answer (date, number, person, ...), or a relation; empty where nobody has said.
        subject: What the question is about, if the file says so.
        name: What messages and tables call it.
        wrong: A wrong answer of the same kind; empty where the file gives none.

    Raises:
        PromptError: No question, no answer, an empty one, or a swapped passage without its answer.
    """

    question: str
    answers: tuple[str, ...]
    passage: Passage | None = None
    swapped: Passage | None = None
    swapped_answer: str = ""
    kind: str = ""
    subject: str = ""
    name: str = ""
    wrong: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise PromptError("a question is empty; leave it out")
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise PromptError(f"no answer, or an empty one: {self.label}")
        if (self.swapped is None) != (not self.swapped_answer.strip()):
            raise PromptError(f"a swapped passage and the swapped answer go together; one is missing: {self.label}")

    @property
    def label(self) -> str:
        """What messages call it: its name, else the beginning of the question."""
        return self.name or self.question[:60]

    def row(self) -> dict[str, Any]:
        """The record as a line of our own JSON-lines layout; `read_knowledge` reads it back."""
        out: dict[str, Any] = {"question": self.question, "answers": list(self.answers)}
        for name, passage in (("passage", self.passage), ("swapped", self.swapped)):
            if passage is not None:
                out[name] = {"title": passage.title, "text": passage.text} if passage.title else passage.text
        texts = {
            "swapped_answer": self.swapped_answer,
            "kind": self.kind,
            "subject": self.subject,
            "id": self.name,
            "wrong": self.wrong,
        }
        return out | {name: text for name, text in texts.items() if text}
