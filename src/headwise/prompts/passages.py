"""Prompts of several passages and a query behind them, in two parts: what all queries share, and what comes with each query.

The query stands behind the passages, so that what the model computes for the passages never depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from headwise.heads.errors import PromptError
from headwise.heads.files import read_json_rows
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Span

NULL_QUERY = "N/A"  # a query without content (Chen et al. 2024, arXiv:2410.02642)


class Passage(NamedTuple):
    """A text to rank.

    Attributes:
        text: what it says.
        title: read in front of the text; may be empty.
    """

    text: str
    title: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is neither text nor title to read."""
        return not self.text.strip() and not self.title.strip()


@dataclass(frozen=True)
class RankingExample:
    """A query with passages.

    Attributes:
        query: what is asked.
        passages: the candidates.
        gold: indices of those that answer the query, from 0.
        name: how messages and tables call it.
        answers: right answers, where they are known.

    Raises:
        PromptError: a gold passage does not exist.
    """

    query: str
    passages: tuple[Passage, ...]
    gold: frozenset[int]
    name: str = ""
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [i for i in self.gold if not 0 <= i < len(self.passages)]
        if wrong:
            raise PromptError(
                f"gold passage {wrong[0]} of {len(self.passages)} passages does not exist ({self.name or self.query!r})"
            )


@dataclass(frozen=True)
class PassageLayout:
    """Wording around passages and query. A title and a full stop stand before a passage's text if it has one.

    Attributes:
        intro: in front of the first passage.
        passage: in front of each passage; `{number}` counts from 1.
        before_query: between the passages and the query.
        after_query: what opens the answer.
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
    """Builds the shared part (spans `passage/1`, `passage/2`, ...) and the part of a query (spans `query`, `official`).

    Attributes:
        builder: makes the prompts.
        layout: the wording.
        chat: whether it stands in the model's chat template.
    """

    def __init__(
        self,
        encoder: PieceEncoder,
        layout: PassageLayout | str = "plain",
        chat: bool = False,
        chat_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the layout and the chat template.

        Args:
            encoder: of the model that reads the passages.
            layout: a name of `LAYOUTS`, or one of your own.
            chat: put it into the model's chat template.
            chat_args: variables for the chat template, see `PromptBuilder`.

        Raises:
            PromptError: an unknown layout, or a chat template that cannot be used.
        """
        if isinstance(layout, str):
            if layout not in LAYOUTS:
                raise PromptError(f"unknown passage layout {layout!r}; use {' or '.join(LAYOUTS)}")
            layout = LAYOUTS[layout]
        self.builder, self.layout, self.chat = PromptBuilder(encoder, chat, chat_args), layout, chat

    def passages(self, passages: Sequence[Passage]) -> Prompt:
        """The shared part. A passage's span holds its tag, title and text.

        The first token of the prompt never belongs to a passage: where neither the tokenizer nor the layout puts anything in front, a line
        break stands there. Otherwise the first passage would get the attention of all heads that look for nothing (the attention sink).

        Raises:
            PromptError: a passage is empty, or there is none.
        """
        self.check(passages)
        pieces = [Piece(self.layout.intro, wording=True)] if self.layout.intro else []
        for number, passage in enumerate(passages, 1):
            if pieces or not self.builder.head:  # heads that look for nothing rest on the first token, which must not be a passage's
                pieces.append(Piece("\n"))
            pieces += self._pieces(passage, number)
        return self.builder.opening(pieces)

    def check(self, passages: Sequence[Passage]) -> None:
        """Refuse passages that cannot be read.

        Raises:
            PromptError: one is empty (its place in this list is named, from 1), or there are none.
        """
        if not passages:
            raise PromptError("no passages were given")
        for number, passage in enumerate(passages, 1):
            if passage.is_empty:
                raise PromptError(f"passage {number} is empty; leave it out")

    def passage(self, passage: Passage, number: int) -> tuple[int, ...]:
        """Ids of one passage inside others: tag, title and text.

        Args:
            passage: the passage.
            number: what its tag says, from 1.

        Returns:
            Ids without the line break behind it.
        """
        encode = self.builder.encoder.encode
        return tuple(i for piece in self._pieces(passage, number) for i in encode(piece.text, piece.wording))

    def query(self, query: str) -> Prompt:
        """The part behind the passages.

        Returns:
            A prompt with the spans `query` (the words of the query alone) and `official` (all from the instruction to the end of the prompt,
            without the separator in front of it, as QRHead's released code averages).

        Raises:
            PromptError: the query is empty.
        """
        words = " ".join(query.split())
        if not words:
            raise PromptError("the query is empty")
        pieces = [Piece("\n"), Piece(self.layout.before_query, wording=True), Piece(" " + words, ("query",))]
        if self.layout.after_query:
            pieces += [Piece("\n"), Piece(self.layout.after_query, wording=True)]
        made = self.builder.closing(pieces)
        return Prompt(made.ids, {**made.spans, "official": Span(len(self.builder.encoder.encode("\n")), len(made.ids))})

    def describe(self) -> dict[str, Any]:
        """All that decides the wording around passages, as plain data."""
        return {"layout": asdict(self.layout), "chat": self.chat} | self.builder.describe()

    @property
    def overhead(self) -> int:
        """Tokens in front of the first passage, its line break included."""
        encoder = self.builder.encoder
        return len(self.builder.head) + (len(encoder.encode(self.layout.intro, wording=True)) if self.layout.intro else 0) + 1

    def _pieces(self, passage: Passage, number: int) -> list[Piece]:
        text, title = passage.text.strip(), passage.title.strip()
        words = f"{title.rstrip('.')}. {text}" if title and text else title or text
        name = (f"passage/{number}",)
        return [Piece(self.layout.passage.format(number=number), name, wording=True), Piece(" " + words, name)]


def read_rows(path: Path, what: str) -> list[tuple[str, Any]]:
    """Values of a file of JSON lines, or of one that holds a JSON list.

    Args:
        path: the file, plain or .gz.
        what: what it holds, for messages.

    Returns:
        (place, value) per entry; place names the file, and line or number in the list from 1, for messages.

    Raises:
        PromptError: the file cannot be read or holds nothing, or something in it is no JSON.
    """
    found = list(read_json_rows(path, what, PromptError))
    if not found:
        raise PromptError(f"{path} holds no {what}")
    return found


def passage_of(row: Any, place: str, keep_empty: bool = False) -> Passage:
    """A passage from what a JSON file may hold.

    Args:
        row: a text, or an object with `text` and, if wanted, `title`.
        place: what a message begins with.
        keep_empty: take passages without text and title, too; published collections hold some.

    Returns:
        The passage.

    Raises:
        PromptError: the row is anything else, or it has neither text nor title (white space is none).
    """
    made = None
    if isinstance(row, str):
        made = Passage(row)
    elif isinstance(row, Mapping) and isinstance(row.get("text"), str) and isinstance(row.get("title") or "", str):
        made = Passage(row["text"], row.get("title") or "")
    if made is not None and made.is_empty and not keep_empty:
        raise PromptError(f"{place}: a passage is empty; leave it out, or give it a text")
    if made is not None:
        return made
    raise PromptError(f"{place}: a passage is a text, or an object with text and title; got {str(row)[:60]!r}")
