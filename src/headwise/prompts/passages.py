"""Prompts of several passages and a query behind them, in two parts: what all queries share, and what comes with each query.

The query stands behind the passages, so that what the model computes for the passages never depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.frame import frame
from headwise.prompts.prompt import Prompt, Span

NULL_QUERY = "N/A"  # a query without content (Chen et al. 2024, arXiv:2410.02642)


class Passage(NamedTuple):
    """A text to rank, with a title if it has one."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class RankingExample:
    """A query, its candidate passages, and the indices of those that answer it."""

    query: str
    passages: tuple[Passage, ...]
    gold: frozenset[int]
    name: str = ""

    def __post_init__(self) -> None:
        wrong = [i for i in self.gold if not 0 <= i < len(self.passages)]
        if wrong:
            raise PromptError(
                f"gold passage {wrong[0]} of {len(self.passages)} passages does not exist ({self.name or self.query!r})"
            )


@dataclass(frozen=True)
class PassageLayout:
    """Wording around passages and query. `{number}` counts from 1; a title and a full stop stand before the text if there is one.

    intro: in front of the first passage. before_query: between the passages and the query. after_query: what opens the answer.
    """

    intro: str = ""
    passage: str = "Passage {number}:"
    before_query: str = "Question:"
    after_query: str = "Answer:"


# `plain` is how the lab models have seen passages; `instructed` says what to do, for models that follow instructions.
LAYOUTS = {
    "plain": PassageLayout(),
    "instructed": PassageLayout(
        intro="Read these numbered passages.",
        before_query="Which of the passages above help to answer the query that follows?\nQuery:",
        after_query="",
    ),
}


class PassageComposer:
    """Builds the shared part (spans `passage/1`, `passage/2`, ...) and the part of a query (spans `query`, `official`)."""

    def __init__(self, encoder: PieceEncoder, layout: PassageLayout | str = "plain", chat: bool = False) -> None:
        if isinstance(layout, str):
            if layout not in LAYOUTS:
                raise PromptError(f"unknown passage layout {layout!r}; use {' or '.join(LAYOUTS)}")
            layout = LAYOUTS[layout]
        self._encode, self._frame, self.layout, self.chat = encoder.encode, frame(encoder, chat), layout, chat

    def passages(self, passages: Sequence[Passage]) -> Prompt:
        """The shared part. A passage's span holds its tag, title and text. Raises `PromptError` for an empty passage or none at all."""
        self.check(passages)
        ids, spans = [*self._frame.head, *self._encode_some(self.layout.intro)], {}
        for number, passage in enumerate(passages, 1):
            if number > 1 or self.layout.intro:
                ids += self._encode("\n")
            start = len(ids)
            ids += self.passage(passage, number)
            spans[f"passage/{number}"] = Span(start, len(ids))
        return Prompt(tuple(ids), spans)

    def check(self, passages: Sequence[Passage]) -> None:
        """Raise `PromptError` for an empty passage, by its place in this list, or none at all."""
        if not passages:
            raise PromptError("no passages were given")
        for number, passage in enumerate(passages, 1):
            if not passage.text.strip():
                raise PromptError(f"passage {number} is empty; leave it out")

    def passage(self, passage: Passage, number: int) -> tuple[int, ...]:
        """Ids of one passage: tag, title and text."""
        text, title = passage.text.strip(), passage.title.strip()
        words = f"{title.rstrip('.')}. {text}" if title else text
        return (*self._encode(self.layout.passage.format(number=number)), *self._encode(" " + words))

    def query(self, query: str) -> Prompt:
        """The part behind the passages.

        Spans: `query`, the words of the query alone; `official`, all from the instruction to the end of the prompt, without the separator in
        front of it, as QRHead's released code averages.
        """
        words = " ".join(query.split())
        if not words:
            raise PromptError("the query is empty")
        separator = self._encode("\n")
        ids = [*separator, *self._encode(self.layout.before_query)]
        asked = self._encode(" " + words)
        span = Span(len(ids), len(ids) + len(asked))
        ids += asked
        if self.layout.after_query:
            ids += (*self._encode("\n"), *self._encode(self.layout.after_query))
        ids += self._frame.tail
        return Prompt(tuple(ids), {"query": span, "official": Span(len(separator), len(ids))})

    @property
    def overhead(self) -> int:
        """Tokens in front of the first passage."""
        return len(self._frame.head) + len(self._encode_some(self.layout.intro)) + 1

    def _encode_some(self, text: str) -> tuple[int, ...]:
        return self._encode(text) if text else ()
