"""Prompts of a user's own, cut into passages, answers that follow them, and positions that an answer can come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Span, Turn

PASSAGE = "passage/"  # names of spans that are passages begin with it
TAIL = 64  # characters of the prompt that decide whether an answer can follow it
_BLANK = re.compile(r"(\r?\n[ \t]*(?:\r?\n[ \t]*)+)")


def prompt_of_text(encoder: PieceEncoder, text: str, chat: bool = False, chat_args: dict[str, Any] | None = None) -> Prompt:
    """A prompt as it stands in a file: what blank lines separate are its passages, the last part is the question.

    Args:
        encoder: Of the model that reads it.
        text: The prompt; without `chat` it may spell control tokens on purpose.
        chat: Put it into the model's chat template, as a user's turn.
        chat_args: Variables for the chat template, see `PromptBuilder`.

    Returns:
        The prompt with the spans `passage/1`, ... and `question`; without passages if no blank line separates anything.

    Raises:
        PromptError: The text is empty, or the chat template cannot be used.
    """
    if not text.strip():
        raise PromptError("the prompt is empty")
    parts = _BLANK.split(text.rstrip("\r\n") if chat else text)
    last = max(i for i, part in enumerate(parts) if part.strip())
    pieces, number = [], 0
    for i, part in enumerate(parts):
        names: tuple[str, ...] = ()
        if part.strip() and i < last:
            number += 1
            names = (f"passage/{number}",)
        elif i == last:
            names = ("question",)
        if part:
            pieces.append(Piece(part, names, wording=not chat))
    return PromptBuilder(encoder, chat, chat_args).build([Turn("user", tuple(pieces))])


def prompt_of_documents(
    encoder: PieceEncoder, question: str, passages: Sequence[Passage], chat: bool = False, chat_args: dict[str, Any] | None = None
) -> Prompt:
    """A question behind documents, in the wording of `PassageComposer`; spans `passage/1`, ... and `query`.

    Raises:
        PromptError: No document, an empty one, or an empty question.
    """
    return question_behind(PassageComposer(encoder, "plain", chat, chat_args), question, passages)


def question_behind(composer: PassageComposer, question: str, passages: Sequence[Passage]) -> Prompt:
    """A question behind documents in a composer's wording; spans `passage/1`, ... and `query`. Raises as `prompt_of_documents`."""
    shared, asked = composer.passages(passages), composer.query(question)
    moved = {name: type(span)(span.start + len(shared.ids), span.stop + len(shared.ids)) for name, span in asked.spans.items()}
    return Prompt((*shared.ids, *asked.ids), {**shared.spans, "query": moved["query"]})


def continuation_of(prompt: Prompt, answer: Sequence[int]) -> tuple[int, ...]:
    """The answer alone, from its own tokens or from those of prompt and answer.

    Raises:
        PromptError: It is empty, or as long as the prompt and begins as the prompt does but goes another way.
    """
    ids, start = tuple(int(token) for token in answer), prompt.ids
    if ids[: len(start)] == start:
        ids = ids[len(start) :]
    elif len(ids) > len(start) and ids[0] == start[0]:
        place = next(i for i, (a, b) in enumerate(zip(ids, start, strict=False)) if a != b)
        raise PromptError(
            f"the answer is no continuation of the prompt: they differ from token {place + 1} on; give the answer's tokens alone"
        )
    if not ids:
        raise PromptError("the answer is empty, so there is nothing to trace")
    return ids


def answer_ids(encoder: PieceEncoder, prompt: Prompt, answer: str) -> tuple[int, ...]:
    """Tokens of an answer as it follows a prompt; a space is put between two words.

    Args:
        encoder: Of the model that reads both.
        prompt: The prompt.
        answer: The answer alone; outer white space is dropped.

    Raises:
        PromptError: The answer is empty, or its beginning and the prompt's end make one token together.
    """
    text = answer.strip()
    if not text:
        raise PromptError("the answer is empty, so there is nothing to trace")
    before = encoder.decode(prompt.ids[-TAIL:])
    is_control = prompt.ids[-1] in encoder.controls
    space = "" if is_control or before[-1:].isspace() else " "
    ids = encoder.encode(space + text)
    tail = [i for i in prompt.ids[-TAIL:] if i not in encoder.controls]
    end = encoder.decode(tail[-4:])
    if not is_control and end and not before.endswith("\n"):
        alone, joined = encoder.encode(end), encoder.encode(end + space + text)
        if joined[: len(alone)] != alone:
            raise PromptError(
                "the answer is no continuation of the prompt: the prompt's last token and the answer's first would be one; "
                "let the prompt end behind a word, without a space"
            )
    return ids


def passages_of(prompt: Prompt) -> dict[str, Span]:
    """The prompt's passages in their order: spans called `passage/...`.

    Raises:
        PromptError: There is none.
    """
    found = {name: span for name, span in prompt.spans.items() if name.startswith(PASSAGE)}
    if not found:
        raise PromptError(
            "the prompt has no documents, so there is no passage to trace an answer to; give --question and --documents"
        )
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def allowed_positions(prompt: Prompt, special: Iterable[int]) -> NDArray[np.bool_]:
    """Positions that can be a source: the text of the passages if there are any, else all.

    Never special tokens, and never the first position, on which heads rest (the attention sink).

    Args:
        prompt: The prompt of P tokens.
        special: Ids of control tokens.

    Returns:
        [P] bool.
    """
    spans = [span for name, span in prompt.spans.items() if name.startswith(PASSAGE)]
    allowed = np.zeros(len(prompt.ids), dtype=bool)
    for span in spans or [Span(0, len(prompt.ids))]:
        allowed[span.start : span.stop] = True
    allowed[np.isin(prompt.ids, list(special))] = False
    allowed[0] = False
    return allowed
