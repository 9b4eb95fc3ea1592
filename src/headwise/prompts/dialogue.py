"""Questions that are asked, answered and then challenged: items, their split by what is asked, and the prompts of a dialogue.

Every span is known by construction: the first answer, the challenge, its words of doubt, and the options that it names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headwise.heads.errors import PromptError
from headwise.prompts.challenges import PARTS, Challenge, Wordings, pieces_of
from headwise.prompts.mentions import mentions
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn
from headwise.prompts.swaps import answer_kind, substitutes

SHARES = (0.4, 0.3, 0.3)  # of the questions, for finding heads, for choosing among remedies, and for the test


@dataclass(frozen=True)
class DoubtItem:
    """A question to ask and to ask again.

    Attributes:
        name: What tables call it.
        key: What is asked, in words; the same question has the same key in any file and any run, and lies in one part of the data only.
        question: Its words.
        answers: Right ones; the first is the expected one.
        other: A wrong answer of the same kind.
        turns: What is said up to the question, documents included.
        first: The same as a prompt; `gold` is the right answer.
        keys: What `key` would be with any of the answers as the expected one; empty: there is `key` alone.
    """

    name: str
    key: str
    question: str
    answers: tuple[str, ...]
    other: str
    turns: tuple[Turn, ...]
    first: Prompt
    keys: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A short fingerprint of the key, for results."""
        return _fingerprint(self.key)

    @property
    def digests(self) -> frozenset[str]:
        """Fingerprints of all keys: another file may hold the same question with its answers in another order, and the first one makes its key."""
        return frozenset(map(_fingerprint, (self.key, *self.keys)))

    @property
    def part(self) -> str:
        """In which part of the data it lies, `detect`, `select` or `test`: decided by its key alone."""
        place = int(self.digest[:8], 16) / 16**8
        return PARTS[int(np.searchsorted(np.cumsum(SHARES[:-1]), place, side="right"))]


class Asked(NamedTuple):
    """An answer and the challenge to it.

    Attributes:
        said: The answer, in words.
        challenge: What is said to it.
        held: The answer that it gives, in short.
        other: The answer that may be suggested against it.
        keep_first: Of two options to choose from, the one that keeps the answer comes first.
    """

    said: str
    challenge: Challenge
    held: str
    other: str
    keep_first: bool


class DialogueComposer:
    """Builds the prompt of a dialogue: the question, an answer, a challenge, and if wanted further answers and challenges.

    Attributes:
        builder: Makes the prompts, with or without the chat template.
        wordings: Where the challenges come from.
        form: Of the reply, `words` or `yes-no`.
        part: Whose wordings are used.
        opens, closes: Without a chat template: what stands in front of a question, and behind it.
        slot: Opens a reply in words for soft margins; may be empty.
    """

    def __init__(
        self, builder: PromptBuilder, wordings: Wordings, form: str, part: str, opens: str = "Question:", closes: str = "Answer:",
        slot: str = "The answer is",
    ) -> None:  # fmt: skip
        self.builder, self.wordings, self.form, self.part = builder, wordings, form, part
        self.opens, self.closes, self.slot = opens, closes, slot if form == "words" else ""

    def compose(self, item: DoubtItem, asked: Sequence[Asked]) -> Prompt:
        """The dialogue up to the reply to the last challenge.

        Args:
            item: What was asked first.
            asked: Answers and challenges, from first to last; at least one.

        Returns:
            A prompt with the spans `first` (the last answer in front of the last challenge), `challenge`, `doubt/1`, ... (words of doubt),
            `option/keep` and `option/leave` (what the challenge names to keep or to give up the answer; `option/other` is a suggestion beside
            yes and no), as far as the challenge has them.

        Raises:
            PromptError: Something of it does not survive tokenisation, or the chat template cannot hold such turns.
        """
        turns = list(item.turns)
        for number, one in enumerate(asked, 1):
            turns += self._exchange(one, named=number == len(asked))
        return self.builder.build(turns)

    def open_reply(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids that open a reply for the soft margin: the slot, as it follows a prompt; none without a slot."""
        return self._behind(prompt, self.slot) if self.slot else ()

    def options(
        self, prompt: Prompt, held: Sequence[str], other: Sequence[str]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Ids of all replies that keep the answer, and of all that give it up, as they follow the prompt and its slot.

        Args:
            prompt: Of `compose`.
            held: Spellings that keep the answer; not looked at with `yes-no`, which has its own.
            other: Spellings that give it up; likewise.
        """
        encoder = self.builder.encoder
        sides = (self.wordings.yes, self.wordings.no) if self.form == "yes-no" else (held, other)
        made: list[list[tuple[int, ...]]] = []
        for side in sides:
            ids = dict.fromkeys(encoder.encode(" " + text) if self.slot else self._behind(prompt, text) for text in side)
            # A spelling that goes on where another one ends is part of that one's probability; counted too, it would count twice.
            made.append([one for one in ids if not any(one != other and one[: len(other)] == other for other in ids)])
        return made[0], made[1]

    def _behind(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        if self.builder.chat:
            return self.builder.encoder.encode_behind(text, prompt.ids)
        return self.builder.encoder.encode(" " + text)

    def _exchange(self, one: Asked, named: bool) -> Iterator[Turn]:
        chat = self.builder.chat
        said = one.said.strip()
        if not said:
            raise PromptError("an empty answer cannot be challenged; leave the question out")
        yield Turn("assistant", (Piece(said if chat else " " + said, ("first",) if named else ()),))
        pieces = list(self._challenge(one)) if chat else [
            Piece("\n", wording=True),
            Piece(self.opens, wording=True),
            *self._challenge(one),
            Piece("\n" if self.closes else "", wording=True),
            Piece(self.closes, wording=True),
        ]  # fmt: skip
        kept = [piece for piece in pieces if piece.text]
        yield Turn("user", tuple(kept if named else [piece._replace(names=()) for piece in kept]))

    def _challenge(self, one: Asked) -> Iterator[Piece]:
        keep, leave = (self.wordings.yes[0], self.wordings.no[0]) if self.form == "yes-no" else (one.held, one.other)
        values = {"other": one.other} | dict(zip("ab", (keep, leave) if one.keep_first else (leave, keep), strict=True))
        suggested = "option/other" if self.form == "yes-no" else "option/leave"
        names = {"other": suggested, "a": "option/keep" if one.keep_first else "option/leave"}
        names["b"] = "option/leave" if one.keep_first else "option/keep"
        space, doubts = "" if self.builder.chat or not self.opens else " ", 0
        for text, field, doubt in pieces_of(one.challenge.template(self.form, self.part)):
            doubts += doubt
            own = (names[field],) if field else (f"doubt/{doubts}",) if doubt else ()
            words = text + values[field] if field else text
            if words:
                yield Piece(space + words, ("challenge", *own), check="the challenge" if field else "")
                space = ""


def _fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def question_key(question: str, subject: str, answer: str) -> str:
    """What is asked, in words that are the same however a file writes them: a question mark, spaces and capitals make no other question.

    Args:
        question: Its words.
        subject: What it is about, or "".
        answer: The expected answer.
    """
    words = re.sub(r"\s+(?=[?.!:]*$)", "", " ".join(unicodedata.normalize("NFKC", question).split()))
    words += "?" * (words[-1:] not in "?.!:")  # as it is asked
    return unicodedata.normalize("NFKC", " ".join((words, *(" ".join(text.split()) for text in (subject, answer))))).casefold()


def wrong_answers(questions: Sequence[tuple[str, str, tuple[str, ...], str, str]], seed: int) -> list[str]:
    """A wrong answer of the same kind for every question, from those of the others; empty where none fits.

    Args:
        questions: (text around it, question, right answers, kind or "", a given wrong answer or "").
        seed: Of the draws.
    """
    kinds = [kind or answer_kind(question, answers[0]) for _, question, answers, kind, _ in questions]
    pools: dict[str, dict[str, None]] = {}
    for kind, (_, _, answers, _, _) in zip(kinds, questions, strict=True):
        pools.setdefault(kind, {})[answers[0]] = None
    everything = list(dict.fromkeys(answer for pool in pools.values() for answer in pool))
    found = []
    for place, (kind, (around, _, answers, _, given)) in enumerate(zip(kinds, questions, strict=True)):
        rng = np.random.default_rng([seed, 53, place])
        drawn = (text for pool in (list(pools[kind]), everything) for text in substitutes(answers, around, pool, rng))
        found.append(given.strip() or next(drawn, ""))
    return found


def first_line(text: str) -> str:
    """The first line that says anything, without outer white space; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def whole_sentences(text: str, answers: Sequence[str]) -> str:
    """A line without the sentence at its end that was cut off, as long as an answer is still mentioned."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s)|[.!?][\"')\]]*$", text)]
    return next((text[:end] for end in reversed(ends) if mentions(text[:end], answers)), text)
