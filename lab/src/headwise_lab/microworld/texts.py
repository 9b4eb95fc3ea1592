"""Texts of the micro-world: pieces with names, turns of question and answer, and what a model is given of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headwise.heads.errors import HeadwiseError
from headwise.prompts.prompt import Encode, Piece, Prompt, Span, lay_out

_WORD = re.compile(r" ?\w+| ?[^\s\w]+|\s")
Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, laid out as: line break, `Question:` ask, line break, `Answer:` lead answer close.

    Attributes:
        ask: The question.
        answer: The answer, its leading space included.
        lead: What opens the answer and belongs to the prompt.
        close: What ends it.
        alias: Further names for spans of the context that matter to this turn (needle -> fact/3, answer -> fact/3/value).
        scored: False for answers that a model should not learn (a wrong first answer).
    """

    ask: Pieces
    answer: Pieces
    lead: Pieces = ()
    close: str = "."
    alias: Mapping[str, str] = field(default_factory=dict)
    scored: bool = True

    @property
    def answer_text(self) -> str:
        """The answer without the space in front and without its closing mark."""
        return "".join(piece.text for piece in self.answer).strip()


@dataclass(frozen=True)
class Example:
    """A text of the micro-world.

    Attributes:
        task: Name of its task.
        split: train, selection or test.
        context: What stands in front of the questions; may be empty.
        turns: Questions and answers, from first to last; may be empty.
        info: The ground truth (facts in their order, which of them answer, and what else a task knows).
    """

    task: str
    split: str
    context: Pieces
    turns: tuple[Exchange, ...]
    info: Mapping[str, Any]

    def __post_init__(self) -> None:
        first = self.context[0] if self.context else None
        if first and first.text[:1].isspace():  # a text does not start with a space
            object.__setattr__(self, "context", (first._replace(text=first.text[1:]), *self.context[1:]))

    @property
    def text(self) -> str:
        """The whole text with all answers."""
        return "".join(piece.text for piece, _ in _flat(self, len(self.turns)))

    @property
    def context_text(self) -> str:
        """The text in front of the first question."""
        return "".join(piece.text for piece in self.context)


def to_prompt(example: Example, encode: Encode, turn: int = -1, bos: Sequence[int] = (), closing: bool = False) -> Prompt:
    """The prompt of one turn; earlier turns stand in it with their answers.

    Args:
        example: The example.
        encode: Ids of a piece as it stands inside a longer text (`PieceEncoder.encode`, `word_cache`).
        turn: Index of the turn; negative ones count from the end.
        bos: Ids to put in front.
        closing: The gold answer ends with its closing mark and a line break, as `NeedleComposer` has it.

    Returns:
        The prompt, with the answer's ids as `gold`. Spans: every name of the context, the turn's aliases, `question` (with the
        names inside it) of this turn, `turn/1/question`, `turn/1/answer` and so on of earlier ones.

    Raises:
        HeadwiseError: The example has no questions.
    """
    if not example.turns:
        raise HeadwiseError(f"an example of the task {example.task!r} without questions makes no prompt; use to_row")
    place = range(len(example.turns))[turn]
    pieces = [Piece(ids=tuple(bos)), *(piece for piece, _ in _flat(example, place, ask=True))]
    ids, spans = lay_out(pieces, lambda piece: piece.ids if piece.ids is not None else encode(piece.text))
    asked = example.turns[place]
    spans |= {alias: spans[name] for alias, name in asked.alias.items()}
    said = [piece.text for piece in asked.answer] + [asked.close, "\n"] * closing
    return Prompt(ids, spans, tuple(i for text in said for i in encode(text)))


def answer_spans(example: Example, encode: Encode, turn: int = -1) -> dict[str, Span]:
    """Spans inside the gold answer of a turn (step/1, claim/2, ...).

    Args:
        example: The example.
        encode: As for `to_prompt`.
        turn: As for `to_prompt`.

    Returns:
        Name -> span, counted from the first id of `Prompt.gold`.
    """
    return lay_out(example.turns[turn].answer, lambda piece: encode(piece.text))[1]


def to_row(example: Example, encode: Encode) -> tuple[list[int], npt.NDArray[np.bool_]]:
    """The whole text as a row to train on.

    Args:
        example: The example.
        encode: As for `to_prompt`.

    Returns:
        Ids [T], and whether each is part of an answer to be learned [T], closing marks included.
    """
    ids: list[int] = []
    marks: list[bool] = []
    for piece, learned in _flat(example, len(example.turns)):
        new = encode(piece.text)
        ids += new
        marks += [learned] * len(new)
    return ids, np.array(marks, dtype=bool)


def word_cache(encode: Encode, limit: int = 200_000) -> Encode:
    """A fast `encode` for tokenizers that never join words (byte-level BPE): every word is encoded once and remembered.

    Args:
        encode: Ids of one word with the space in front of it.
        limit: Most words that are remembered; then all are forgotten.
    """
    known: dict[str, tuple[int, ...]] = {}

    def cached(text: str) -> list[int]:
        out: list[int] = []
        for word in _WORD.findall(text):
            ids = known.get(word)
            if ids is None:
                if len(known) >= limit:
                    known.clear()
                ids = known[word] = tuple(encode(word))
            out += ids
        return out

    return cached


def words_in(pieces: Iterable[Piece]) -> int:
    """Number of words."""
    return sum(len(piece.text.split()) for piece in pieces)


def _flat(example: Example, turns: int, ask: bool = False) -> Iterator[tuple[Piece, bool]]:
    """Pieces of the context and of the first `turns` turns, then with `ask` the question of the next; with whether to learn them."""
    yield from ((piece, False) for piece in example.context)
    started = bool(example.context)
    for number, turn in enumerate(example.turns[: turns + ask], 1):
        last = number > turns
        yield Piece("\nQuestion:" if started else "Question:"), False
        started = True
        prefix = "" if last else f"turn/{number}/"
        for piece in turn.ask:
            names = (*(prefix + name for name in piece.names), prefix + "question")
            yield Piece(piece.text, names), False
        yield Piece("\nAnswer:"), False
        yield from ((replace_names(piece, prefix), False) for piece in turn.lead)
        if not last:
            for piece in turn.answer:
                yield Piece(piece.text, (*(prefix + n for n in piece.names), prefix + "answer")), turn.scored
            yield Piece(turn.close), turn.scored


def replace_names(piece: Piece, prefix: str) -> Piece:
    """The piece with a prefix to all its names."""
    return Piece(piece.text, tuple(prefix + name for name in piece.names)) if prefix else piece


def with_turn(example: Example, turn: int, **changes: Any) -> Example:
    """A copy with one turn changed.

    Args:
        example: The example.
        turn: Index of the turn; negative ones count from the end.
        **changes: Fields of `Exchange`.
    """
    turns = list(example.turns)
    turns[turn] = replace(turns[turn], **changes)
    return replace(example, turns=tuple(turns))
