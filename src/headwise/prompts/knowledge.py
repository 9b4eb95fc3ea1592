"""Questions whose answer can be read in a passage or remembered: records, the files they come from, and their prompts.

Spans are known because the passage is cut at every mention of the answer before it is encoded; nothing is searched for in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge_files import read_knowledge
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.mentions import find_mentions
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn

__all__ = ["WORDINGS", "KnowledgeComposer", "KnowledgeRecord", "KnowledgeWording", "read_knowledge"]


@dataclass(frozen=True)
class KnowledgeWording:
    """Words around passages and question.

    Attributes:
        opened: In front of the passages.
        closed: In front of a question without passages.
        passage: In front of each passage; `{number}` counts from 1.
        before_question: In front of the question; empty: the question is a sentence to be continued.
        after_question: What opens the answer; not used inside a chat template, which has its own way.
    """

    opened: str = ""
    closed: str = ""
    passage: str = "Passage {number}:"
    before_question: str = "Question:"
    after_question: str = "Answer:"


# `cloze` is for questions that are the beginning of a sentence, as those of LRE relations and of the known facts; `bare` has no tags of passages.
WORDINGS = {
    "plain": KnowledgeWording(),
    "instructed": KnowledgeWording("Use what you read here for a short answer.", "Give a short answer from what you know."),
    "cloze": KnowledgeWording(before_question="", after_question=""),
    "bare": KnowledgeWording(passage=""),
}


class KnowledgeComposer:
    """Builds closed-book and open-book prompts, with spans for the question, every passage and every mention of the answer.

    Attributes:
        builder: Makes the prompts.
        wording: The words around what is given.
        chat: Whether the prompt stands in the model's chat template.
        examples: Solved questions that stand in front.
    """

    def __init__(
        self,
        encoder: PieceEncoder,
        wording: KnowledgeWording | str = "plain",
        chat: bool = False,
        chat_args: Mapping[str, Any] | None = None,
        examples: Sequence[KnowledgeRecord] = (),
    ) -> None:
        """Check the wording and the chat template.

        Args:
            encoder: Of the model that is asked.
            wording: A name of `WORDINGS`, or one of your own.
            chat: Put it into the model's chat template.
            chat_args: Variables for the chat template, see `PromptBuilder`.
            examples: Solved questions in front, few-shot; in open-book prompts with their passages.

        Raises:
            PromptError: An unknown wording, or a chat template that cannot be used.
        """
        if isinstance(wording, str):
            if wording not in WORDINGS:
                raise PromptError(f"unknown wording {wording!r}; use {', '.join(WORDINGS)}")
            wording = WORDINGS[wording]
        self.builder, self.wording, self.chat = PromptBuilder(encoder, chat, chat_args), wording, chat
        self.examples = tuple(examples)

    def closed(self, record: KnowledgeRecord) -> Prompt:
        """The question alone.

        Returns:
            A prompt with the span `question`; `gold` is the right answer.

        Raises:
            PromptError: The question or the answer does not survive tokenisation.
        """
        return self._build(self.turns(record), record.answers[0])

    def turns(self, record: KnowledgeRecord, passage: bool = False) -> list[Turn]:
        """What is said up to the question, the examples included; a conversation can go on behind it.

        Args:
            record: What is asked.
            passage: Show its own passage.

        Raises:
            PromptError: There is no passage to show.
        """
        if not passage:
            return [*(turn for one in self.examples for turn in self._solved(one, ())), self._asked(record, ())]
        if record.passage is None:
            raise PromptError(f"no passage to read the answer from: {record.label}")
        return self._behind(record, (record.passage,), record.answers)

    def opened(self, record: KnowledgeRecord, swapped: bool = False, passages: Sequence[Passage] | None = None) -> Prompt:
        """The question behind one passage or several.

        Args:
            record: What is asked.
            swapped: Show the swapped passage, so that the answer to be read is the swapped one.
            passages: Show these in place of the record's own one, in this order; the answer is marked wherever one mentions it.

        Returns:
            A prompt with the spans `question`, `passage/1`, ... (tag, title and text) and `answer/1`, ... (every mention inside the
            passages of the answer or its aliases, with `swapped` of the swapped answer); `gold` is the answer to be read.

        Raises:
            PromptError: There is no passage, one is empty, or the question or a mention does not survive tokenisation.
        """
        own = record.swapped if swapped else record.passage
        shown = tuple(passages) if passages is not None else (own,) if own is not None else ()
        if not shown:
            raise PromptError(f"no {'swapped ' * swapped}passage to read the answer from: {record.label}")
        for number, passage in enumerate(shown, 1):
            if passage.is_empty:
                raise PromptError(f"passage {number} is empty; leave it out ({record.label})")
        wanted = (record.swapped_answer,) if swapped else record.answers
        return self._build(self._behind(record, shown, wanted), wanted[0])

    def first_token(self, text: str) -> int:
        """The first token of an answer as it follows the prompt's last character.

        Raises:
            PromptError: The answer is empty or does not survive tokenisation.
        """
        return self.answer_ids(text)[0]

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer as it follows the prompt. Raises as `first_token`."""
        if not text.strip():
            raise PromptError("an answer is empty; leave it out")
        return self.builder.encoder.encode_checked(self._space + text.strip(), "the answer")

    def describe(self) -> dict[str, Any]:
        """All that decides the wording, as plain data."""
        shots = [one.row() for one in self.examples]
        return {"wording": asdict(self.wording), "chat": self.chat, "examples": shots} | self.builder.describe()

    @property
    def _space(self) -> str:
        return "" if self.chat else " "

    def _build(self, turns: Sequence[Turn], answer: str) -> Prompt:
        return self.builder.build(turns, [Piece(self._space + answer.strip(), check="the answer")])

    def _behind(self, record: KnowledgeRecord, shown: Sequence[Passage], wanted: Sequence[str]) -> list[Turn]:
        """The examples with their passages, and the question behind passages; mentions of what is wanted make spans."""
        shots = [turn for one in self.examples for turn in self._solved(one, (one.passage,) if one.passage else ())]
        first, *others = [*shots, self._asked(record, shown, wanted)]
        if not (
            self.builder.head or self.wording.opened
        ):  # heads that look for nothing rest on the first token, which must not be a passage's
            first = first._replace(pieces=(Piece("\n"), *first.pieces))
        return [first, *others]

    def _solved(self, record: KnowledgeRecord, passages: Sequence[Passage]) -> Iterator[Turn]:
        yield self._asked(record, passages, named=False)
        yield Turn("assistant", (Piece(self._space + record.answers[0] + "\n\n" * (not self.chat)),))

    def _asked(
        self, record: KnowledgeRecord, passages: Sequence[Passage], wanted: Iterable[str] = (), named: bool = True
    ) -> Turn:
        """The user's turn. named: whether its pieces make spans."""
        words = self.wording
        lines = [[Piece(words.opened if passages else words.closed, wording=True)]]
        wanted, count = tuple(wanted), 0
        for number, passage in enumerate(passages, 1):
            line = self._passage(passage, number, wanted if named else (), count)
            count += sum(len(piece.names) > 1 for piece in line)
            lines.append(line)
        lines.append(self._question(record))
        lines.append([Piece("" if self.chat else words.after_question, wording=True)])
        filled = [pieces for line in lines if (pieces := [piece for piece in line if piece.text])]
        joined = [piece for line in filled for piece in (Piece("\n"), *line)][1:]
        return Turn("user", tuple(joined if named else [piece._replace(names=()) for piece in joined]))

    def _question(self, record: KnowledgeRecord) -> list[Piece]:
        before, words = self.wording.before_question, " ".join(record.question.split())
        if not before:
            return [Piece(words, ("question",), check="the question")]
        words += "?" * (words[-1:] not in "?.!:")
        return [Piece(before, wording=True), Piece(" " + words, ("question",), check="the question")]

    def _passage(self, passage: Passage, number: int, wanted: Sequence[str], count: int) -> list[Piece]:
        """Tag, title and text, cut at every mention. count: mentions in the passages before."""
        name, tag = f"passage/{number}", self.wording.passage.format(number=number)
        text = f" {read_as(passage)}" if tag else read_as(passage)
        pieces, done = [Piece(tag, (name,), wording=True)], 0
        for place, mention in enumerate(find_mentions(text, wanted), count + 1):
            start = mention.start - (
                text[max(mention.start - 1, 0)] == " "
            )  # tokenizers join a word and the space in front of it
            pieces.append(Piece(text[done:start], (name,)))
            pieces.append(Piece(text[start : mention.stop], (name, f"answer/{place}"), check="the answer in a passage"))
            done = mention.stop
        return [piece for piece in (*pieces, Piece(text[done:], (name,))) if piece.text]


def read_as(passage: Passage) -> str:
    """The text as it is read: title and full stop in front of the text, if there is a title."""
    text, title = passage.text.strip(), passage.title.strip()
    return f"{title.rstrip('.')}. {text}" if title and text else title or text
