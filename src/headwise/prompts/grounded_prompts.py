"""Prompts that ask for an answer in whole sentences from documents, and the same question without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwise.heads.errors import PromptError
from headwise.prompts.answers import question_behind
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.passages import LAYOUTS, PassageComposer, PassageLayout
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn

# `plain` is how the lab models have seen passages; `instructed` says what to do, for models that follow instructions.
WORDINGS = {
    "plain": LAYOUTS["plain"],
    "instructed": PassageLayout(
        intro="Answer the question in whole sentences, from these passages alone. Where they do not tell, say that you do not know.",
        after_query="",
    ),
}


class GroundedComposer:
    """Builds a question behind its documents (spans `passage/1`, ... and `query`), and the question alone.

    Attributes:
        chat: Whether the prompt stands in the model's chat template.
        encoder: Of the model that is asked.
        opens_thought: Whether the template leaves a think block open in front of the answer.
    """

    def __init__(
        self, encoder: PieceEncoder, wording: str = "plain", chat: bool = False, chat_args: Mapping[str, Any] | None = None
    ) -> None:
        """Check the wording and the chat template.

        Args:
            encoder: Of the model that is asked.
            wording: A name of `WORDINGS`.
            chat: Put it into the model's chat template.
            chat_args: Variables for the chat template, see `PromptBuilder`.

        Raises:
            PromptError: An unknown wording, or a chat template that cannot be used.
        """
        if wording not in WORDINGS:
            raise PromptError(f"unknown wording {wording!r}; use {' or '.join(WORDINGS)}")
        self.encoder, self.chat, self._words = encoder, chat, WORDINGS[wording]
        self._passages = PassageComposer(encoder, self._words, chat, chat_args)

    @property
    def builder(self) -> PromptBuilder:
        """What makes the prompts."""
        return self._passages.builder

    @property
    def opens_thought(self) -> bool:
        """See `PromptBuilder.opens_thought`."""
        return self.chat and self.builder.opens_thought

    def opened(self, record: GroundedRecord) -> Prompt:
        """The question behind its documents.

        Raises:
            PromptError: The record has no documents.
        """
        if not record.documents:
            raise PromptError(f"no documents to answer from: {record.label}")
        return question_behind(self._passages, record.question, record.documents)

    def closed(self, record: GroundedRecord) -> Prompt:
        """The question alone, in the same words, with the span `query`."""
        words = self._words
        pieces = [Piece(words.before_query, wording=True), Piece(" " + " ".join(record.question.split()), ("query",))]
        if words.after_query:
            pieces += [Piece("\n"), Piece(words.after_query, wording=True)]
        return self.builder.build([Turn("user", tuple(pieces))])

    def describe(self) -> dict[str, Any]:
        """All that decides the wording, as plain data."""
        return self._passages.describe()
