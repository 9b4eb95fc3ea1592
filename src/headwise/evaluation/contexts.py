"""Texts and questions on which caches are compared: from tasks, from RULER's files, or from a user's own file."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece, PromptBuilder, Span
from headwise.prompts.questions import OwnQuestion
from headwise.prompts.ruler import RulerRow, string_match
from headwise.runtime.answer import stop_ids

FILL = 0.95  # mean share of the wanted length that a prompt and its answer fill
MISSES = 100  # prompts in a row that do not fit, after which drawing ends
TRIED = 6  # prompts whose mean length decides how much text the next ones hold
PLAIN, CHAT = (
    "\nQuestion: {question}\nAnswer:",
    "\n\nAnswer from the text above, in a few words.\n{question}",
)  # of a user's own questions


class Question(NamedTuple):
    """What comes behind a context.

    Attributes:
        rest: Token ids.
        limit: Longest answer in tokens.
        judge: Text of the answer -> how right it is, in [0, 1].
        answer: The answer's place in the context, if it is known.
        gold: The expected answer as text.
        id: Name of the question among those of its context.
        also: Further places, where an answer is put together from several.
    """

    rest: tuple[int, ...]
    limit: int
    judge: Callable[[str], float]
    answer: Span | None
    gold: str = ""
    id: str = ""
    also: tuple[Span, ...] = ()

    @property
    def places(self) -> tuple[Span, ...]:
        """All places of the answer; none if they are not known."""
        return () if self.answer is None else (self.answer, *self.also)


class Context(NamedTuple):
    """A text and the questions about it.

    Attributes:
        task: Name of the task.
        length: Of prompt and answer in tokens, as wanted (None: as it comes).
        ids: Token ids of the text.
        questions: At least one.
        stop: Ids that end an answer.
    """

    task: str
    length: int | None
    ids: tuple[int, ...]
    questions: tuple[Question, ...]
    stop: frozenset[int]


class CacheTask(Protocol):
    """A task of `headwise bench cache`; registered under a name in the entry-point group `headwise.tasks`."""

    def __call__(
        self, model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
    ) -> list[Context]:
        """Draw contexts; the same arguments give the same ones.

        Args:
            model: The model with its tokenizer.
            task: The name under which the task was asked for.
            length: Tokens of prompt and answer, at most.
            count: Number of contexts.
            questions: Questions per context.
            split: `train`, `selection` or `test`: whose names and wordings.
            seed: 0 or more.

        Raises:
            HeadwiseError: Prompts of this length cannot be made, or exceed the model.
        """


def answer_spans(questions: Sequence[Question]) -> dict[str, Span]:
    """Places of the answers, as spans `answer/1`, `answer/2`, ... of a prompt."""
    return {f"answer/{i}": span for i, span in enumerate((span for one in questions for span in one.places), 1)}


def longest(context: Context) -> int:
    """Tokens of the longest prompt with its longest answer."""
    return len(context.ids) + max(len(question.rest) + question.limit for question in context.questions)


def check_drawing(model: Model, length: int, count: int, questions: int, seed: int) -> None:
    """Raise `HeadwiseError` for numbers that no task can draw by.

    Args:
        model: Its positions limit the length.
        length: Tokens of prompt and answer.
        count: Contexts, at least 1.
        questions: Per context, at least 1.
        seed: 0 or more.
    """
    if count < 1 or questions < 1 or seed < 0:
        raise HeadwiseError(f"items and questions must be at least 1 and the seed 0 or more; got {count}, {questions} and {seed}")
    most = model.positions
    if most is not None and length > most:
        raise HeadwiseError(
            f"prompts of {length} tokens asked for, but {model.name} has {most} positions; choose {most} or fewer"
        )


def fitted_contexts(draw: Callable[[float, int], Context], length: int, count: int) -> list[Context]:
    """Contexts that fill about `length` tokens and no more.

    Args:
        draw: (about how many tokens, number of the draw) -> a context.
        length: Tokens of prompt and answer, at most.
        count: Contexts wanted.

    Returns:
        The first `count` draws that fit.

    Raises:
        HeadwiseError: Nothing that is drawn fits.
    """
    size = float(length)
    for _ in range(3):
        size *= FILL * length / float(np.mean([longest(draw(size, i)) for i in range(TRIED)]))
    found: list[Context] = []
    number = misses = 0
    while len(found) < count:
        context = draw(size, number)
        number, misses = number + 1, misses + 1
        if longest(context) <= length:
            found.append(context)
            misses = 0
        elif misses > MISSES:
            raise HeadwiseError(
                f"no {context.task} prompt with {len(context.questions)} questions fits into {length} tokens; choose a greater length"
            )
    return found


def ruler_contexts(
    model: Model, rows: Sequence[RulerRow], chat: bool = False, chat_args: Mapping[str, Any] | None = None
) -> list[Context]:
    """Contexts of RULER's rows, one question each.

    Args:
        model: The model with its tokenizer.
        rows: What `read_ruler` gives.
        chat: Context and question stand in a user turn, as in kvpress's evaluation.
        chat_args: Variables for the chat template.

    Returns:
        One per row. Answers end where the model ends a text, not at a line break, and are judged by RULER's own measure.

    Raises:
        HeadwiseError: A row that the model has no positions for.
    """
    encoder = PieceEncoder(model.tokenizer)
    builder = PromptBuilder(encoder, chat, chat_args)
    found = []
    for number, row in enumerate(rows, 1):
        rest = (*builder.closing([Piece(row.question)]).ids, *encoder.encode(row.answer_prefix))
        ids, place = _placed(builder, row.context, row.answers)
        judge = _RulerJudge(row)
        question = Question(rest, row.limit, judge, place, ", ".join(row.answers), str(number))
        found.append(_checked(Context(row.task, None, ids, (question,), model.stop_ids), model, f"row {number} of {row.task}"))
    return found


def data_contexts(
    model: Model,
    asked: Sequence[OwnQuestion],
    name: str,
    limit: int = 32,
    chat: bool = False,
    chat_args: Mapping[str, Any] | None = None,
) -> list[Context]:
    """Contexts of a user's own questions; those about the same text are asked about one context.

    An answer is right if one of the expected answers stands in it, case ignored.

    Args:
        model: The model with its tokenizer.
        asked: What `read_questions` gives.
        name: What the task is called in results.
        limit: Longest answer in tokens.
        chat: Context and question stand in a user turn.
        chat_args: Variables for the chat template.

    Returns:
        One per different text, in the order of first appearance.

    Raises:
        HeadwiseError: A question that the model has no positions for.
    """
    encoder = PieceEncoder(model.tokenizer)
    builder = PromptBuilder(encoder, chat, chat_args)
    stop = model.stop_ids if chat else stop_ids(model)
    texts: dict[str, list[OwnQuestion]] = {}
    for one in asked:
        texts.setdefault(one.context, []).append(one)
    found = []
    for text, own in texts.items():
        questions = []
        for one in own:
            wording = (CHAT if chat else PLAIN).format(question=one.question.strip())
            prefix = f" {one.answer_prefix.strip()}" if one.answer_prefix.strip() and not chat else one.answer_prefix.strip()
            rest = (*builder.closing([Piece(wording)]).ids, *(encoder.encode(prefix) if prefix else ()))
            ids, place = _placed(builder, text, one.answers)
            questions.append(Question(rest, limit, _Contained(one.answers), place, " / ".join(one.answers), one.id))
        context = Context(name, None, ids, tuple(questions), stop)
        found.append(_checked(context, model, f"question {own[0].id!r} of {name}"))
    return found


def place_of(encoder: PieceEncoder, ids: Sequence[int], text: str, answer: str) -> Span | None:
    """Tokens of the only occurrence of an answer in a text.

    Args:
        encoder: That made the ids.
        ids: Of the text.
        text: The text.
        answer: Letter for letter, case included.

    Returns:
        Positions in `ids`; None if the answer stands there several times or never, or tokens do not give the text back.
    """
    at = text.find(answer)
    if at < 0 or text.find(answer, at + 1) >= 0 or encoder.decode(ids) != text:
        return None
    ends = range(len(ids) + 1)

    def read(end: int) -> int:
        return len(encoder.decode(ids[:end])) if end else 0

    span = Span(bisect_right(ends, at, key=read) - 1, bisect_left(ends, at + len(answer), key=read))
    return span if answer in encoder.decode(ids[span.start : span.stop]) else None


@dataclass(frozen=True)
class _Contained:
    """Whether any of the answers stands in a text, case ignored."""

    answers: tuple[str, ...]

    def __call__(self, said: str) -> float:
        return float(any(answer.casefold() in said.casefold() for answer in self.answers))


@dataclass(frozen=True)
class _RulerJudge:
    """RULER's measure for a row."""

    row: RulerRow

    def __call__(self, said: str) -> float:
        return string_match(said, self.row)


def contained(answer: str) -> Callable[[str], float]:
    """A judge: whether the answer stands in a text, case ignored."""
    return _Contained((answer,))


def _placed(builder: PromptBuilder, text: str, answers: Sequence[str]) -> tuple[tuple[int, ...], Span | None]:
    """Ids of a text as the beginning of a prompt, and where the answer stands in them if there is one answer and one place."""
    ids, start = builder.opening([Piece(text)]).ids, len(builder.head)
    span = place_of(builder.encoder, ids[start:], text, answers[0]) if len(answers) == 1 else None
    return ids, None if span is None else Span(span.start + start, span.stop + start)


def _checked(context: Context, model: Model, what: str) -> Context:
    most = model.positions
    if most is not None and longest(context) > most:
        raise HeadwiseError(
            f"{what} needs {longest(context)} tokens with its answer, but {model.name} has {most} positions; shorten it or leave it out"
        )
    return context
