"""Needles: a sentence that holds an answer, and a question about it. Bundled ones, the user's own, and prompts that hide them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headwise.heads.errors import PromptError
from headwise.heads.files import read_json_lines
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import EAST, Window
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn

FIELDS = ("needle", "question", "answer")
HALVES = ("detect", "test")
NEEDLE_SETS = (*HALVES, "paraphrased", "literal")
BASE_TEMPLATE = "{context}\nQuestion: {question}\nAnswer: {answer_prefix}"
CHAT_TEMPLATE = "{context}\n\nAnswer from the text above, in a few words.\n{question}"
TEMPLATE_FIELDS = ("context", "question", "answer_prefix")


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
        split: `detect` (16, for finding heads) or `test` (16 others, for tests and reports); None: both. Or one of the further sets:
            `paraphrased` (24 whose questions share no content word with them, so that the answer must be inferred, as in NoLiMa,
            arXiv 2502.05167) and `literal` (the same 24 with questions in their own words, to compare with).

    Returns:
        Always in the same order.

    Raises:
        PromptError: There is no such set.
    """
    if split is not None and split not in NEEDLE_SETS:
        raise PromptError(f"unknown set of bundled needles {split!r}; use {', '.join(NEEDLE_SETS)}")
    text = resources.files("headwise.prompts").joinpath("data/needles.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [_needle(row) for row in rows if row["split"] in (HALVES if split is None else (split,))]


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


class NeedleComposer:
    """Builds needle prompts with the spans context, needle, answer (inside the needle), question.

    Attributes:
        builder: makes the prompts.
        template: text with {context}, {question} and, if wanted, {answer_prefix}.
        chat: whether it stands in the model's chat template.
    """

    def __init__(
        self, encoder: PieceEncoder, template: str | None = None, chat: bool = False, chat_args: Mapping[str, Any] | None = None
    ) -> None:
        """Check template and chat template.

        Args:
            encoder: of the model that is asked.
            template: text with {context}, {question} and, if wanted, {answer_prefix}; None: `CHAT_TEMPLATE` with `chat`, else
                `BASE_TEMPLATE`.
            chat: put it into the model's chat template.
            chat_args: variables for the chat template, see `PromptBuilder`.

        Raises:
            PromptError: a template with other fields or without those it needs, or a chat template that cannot be used.
        """
        template = template or (CHAT_TEMPLATE if chat else BASE_TEMPLATE)
        self._parts = _parse(template)
        self.builder = PromptBuilder(encoder, chat, chat_args)
        self.template, self.chat = template, chat

    def compose(self, window: Window, needle: Needle, depth: float) -> Prompt:
        """Insert the needle into the window and ask for it.

        Args:
            window: the haystack around the needle.
            needle: what to hide.
            depth: where, as a fraction of the window in [0, 1].

        Returns:
            The prompt; `gold` is the answer, the rest of its sentence, and a line break.

        Raises:
            PromptError: a text of the needle or the template does not survive tokenisation.
        """
        return self.builder.build([self.turn(window, needle, depth)], self._gold(needle))

    def turn(self, window: Window, needle: Needle, depth: float) -> Turn:
        """What is said in `compose`; a conversation can go on behind it."""
        pieces: list[Piece] = []
        for kind, text in self._with_values(needle):
            if kind == "context":
                place = window.place(depth)
                pieces.append(Piece(names=("context",), ids=window.ids[:place]))
                pieces += self._needle_pieces(needle)
                pieces.append(Piece(names=("context",), ids=window.ids[place:]))
            elif text:
                names = ("question",) if kind == "question" else ()
                pieces.append(Piece(text, names, wording=kind is None, check=kind or "template"))
        return Turn("user", tuple(pieces))

    def context_cost(self, needle: Needle) -> int:
        """Tokens that the needle takes inside the context.

        Raises:
            PromptError: the needle does not survive tokenisation.
        """
        encoder = self.builder.encoder
        return sum(len(encoder.encode_checked(piece.text, piece.check)) for piece in self._needle_pieces(needle))

    def describe(self) -> dict[str, Any]:
        """All that decides the wording around needles, as plain data."""
        return {"template": self.template, "chat": self.chat} | self.builder.describe()

    def _gold(self, needle: Needle) -> list[Piece]:
        before, answer, after = needle.parts
        answer = answer if before else _space(answer) + answer
        return [Piece(answer, check="answer"), Piece(after), Piece("\n")]

    def _needle_pieces(self, needle: Needle) -> list[Piece]:
        before, answer, after = needle.parts
        first = _space(before or answer)
        found = [
            Piece(first + before if before else "", ("needle", "context"), check="needle"),
            Piece(answer if before else first + answer, ("answer", "needle", "context"), check="answer"),
            Piece(after, ("needle", "context"), check="needle"),
        ]
        return [piece for piece in found if piece.text]

    def _with_values(self, needle: Needle) -> Iterable[tuple[str | None, str]]:
        """Template parts with the needle's texts; a space in front of a field moves into the field, where tokenizers want it."""
        values = {"context": "", "question": needle.question, "answer_prefix": needle.answer_prefix}
        for i, (kind, literal) in enumerate(self._parts):
            if kind is not None:
                space = " " if i and self._parts[i - 1][1].endswith(" ") else ""
                yield kind, space + values[kind] if values[kind] else ""
            else:
                yield None, literal.removesuffix(" ")


def _space(text: str) -> str:
    """What stands in front of a sentence inside a text: a space, but not in scripts that have none between words."""
    return "" if re.match(f"[「『《（{EAST}]", text) else " "


def _parse(template: str) -> list[tuple[str | None, str]]:
    """[(field or None, literal text)]; refuses unknown, missing or repeated fields."""
    parts: list[tuple[str | None, str]] = []
    for i, text in enumerate(re.split(r"\{(\w*)\}", template)):
        if i % 2 == 0:
            if text:
                parts.append((None, text))
        elif text in TEMPLATE_FIELDS:
            parts.append((text, ""))
        else:
            raise PromptError(f"unknown field {{{text}}} in the template; use {{context}}, {{question}}, {{answer_prefix}}")
    names = [kind for kind, _ in parts if kind]
    for name in ("context", "question"):
        if names.count(name) != 1:
            raise PromptError(f"the template must contain {{{name}}} exactly once; it contains it {names.count(name)} times")
    return parts
