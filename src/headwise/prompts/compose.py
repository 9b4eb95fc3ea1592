"""Composing prompts piece by piece: ids are joined, spans are known, nothing is searched for afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.frame import frame
from headwise.prompts.haystack import Window
from headwise.prompts.needles import Needle
from headwise.prompts.prompt import Prompt, Span

BASE_TEMPLATE = "{context}\nQuestion: {question}\nAnswer: {answer_prefix}"
CHAT_TEMPLATE = "{context}\n\nAnswer from the text above, in a few words.\n{question}"
FIELDS = ("context", "question", "answer_prefix")


class NeedleComposer:
    """Builds needle prompts with the spans context, needle, answer (inside the needle), question."""

    def __init__(self, encoder: PieceEncoder, template: str | None = None, chat: bool = False) -> None:
        """template: text with {context}, {question} and, if wanted, {answer_prefix}. chat: wrap it by the model's chat template."""
        self._encoder = encoder
        template = template or (CHAT_TEMPLATE if chat else BASE_TEMPLATE)
        self._frame = frame(encoder, chat)
        self._parts = _parse(template)
        self.template, self.chat = template, chat

    def compose(self, window: Window, needle: Needle, depth: float) -> Prompt:
        """Insert the needle into the window at `depth` and ask for it.

        Spans cover exactly what they name; `gold` is the answer, the rest of its sentence, and a line break.
        """
        pieces: list[tuple[str | None, tuple[int, ...]]] = [(None, self._frame.head)]
        for kind, text in self._with_values(needle):
            if kind == "context":
                pieces += self._context(window, needle, depth)
            elif text:
                pieces.append((kind if kind == "question" else None, self._encoder.encode_checked(text, kind or "template")))
        if self._frame.tail:
            pieces.append((None, self._frame.tail))
        ids, spans = join(pieces)
        return Prompt(ids, spans, self.gold(needle))

    def gold(self, needle: Needle) -> tuple[int, ...]:
        """Ids of the expected answer line."""
        before, answer, after = needle.parts
        answer = answer if before else " " + answer
        end = self._encoder.encode(after) if after else ()
        return (*self._encoder.encode_checked(answer, "answer"), *end, *self._encoder.encode("\n"))

    def context_cost(self, needle: Needle) -> int:
        """Tokens of the needle inside the context."""
        return sum(len(ids) for _, ids in self._needle_pieces(needle))

    def _context(self, window: Window, needle: Needle, depth: float) -> list[tuple[str | None, tuple[int, ...]]]:
        place = window.place(depth)
        return [("context", window.ids[:place]), *self._needle_pieces(needle), ("context", window.ids[place:])]

    def _needle_pieces(self, needle: Needle) -> list[tuple[str | None, tuple[int, ...]]]:
        before, answer, after = needle.parts
        pieces: list[tuple[str | None, tuple[int, ...]]] = []
        if before:
            pieces.append(("needle", self._encoder.encode_checked(" " + before, "needle")))
        else:
            answer = " " + answer
        pieces.append(("answer", self._encoder.encode_checked(answer, "answer")))
        if after:
            pieces.append(("needle", self._encoder.encode_checked(after, "needle")))
        return pieces

    def _with_values(self, needle: Needle) -> Iterable[tuple[str | None, str]]:
        """Template parts with the needle's texts; a space in front of a field moves into the field, where tokenizers want it."""
        values = {"context": "", "question": needle.question, "answer_prefix": needle.answer_prefix}
        for i, (kind, literal) in enumerate(self._parts):
            if kind is not None:
                space = " " if i and self._parts[i - 1][1].endswith(" ") else ""
                yield kind, space + values[kind] if values[kind] else ""
            else:
                yield None, literal.removesuffix(" ")


def join(pieces: Iterable[tuple[str | None, tuple[int, ...]]]) -> tuple[tuple[int, ...], dict[str, Span]]:
    """Concatenate pieces; a name's span reaches from its first to its last piece."""
    ids: list[int] = []
    spans: dict[str, Span] = {}
    for name, part in pieces:
        start = len(ids)
        ids += part
        if name is not None and part:
            spans[name] = Span(spans[name].start if name in spans else start, len(ids))
    for inner, outer in (("answer", "needle"), ("needle", "context")):
        if inner in spans:
            known = spans.get(outer, spans[inner])
            spans[outer] = Span(min(known.start, spans[inner].start), max(known.stop, spans[inner].stop))
    return tuple(ids), spans


def _parse(template: str) -> list[tuple[str | None, str]]:
    """[(field or None, literal text)]; refuses unknown, missing or repeated fields."""
    parts: list[tuple[str | None, str]] = []
    for i, text in enumerate(re.split(r"\{(\w*)\}", template)):
        if i % 2 == 0:
            if text:
                parts.append((None, text))
        elif text in FIELDS:
            parts.append((text, ""))
        else:
            raise PromptError(f"unknown field {{{text}}} in the template; use {{context}}, {{question}}, {{answer_prefix}}")
    names = [kind for kind, _ in parts if kind]
    for name in ("context", "question"):
        if names.count(name) != 1:
            raise PromptError(f"the template must contain {{{name}}} exactly once; it contains it {names.count(name)} times")
    return parts
