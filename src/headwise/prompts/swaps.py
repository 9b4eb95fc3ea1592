"""Passages with another answer in them: conflicts between what a model reads and what it remembers.

The idea is that of entity substitution by type (Longpre et al. 2021, arXiv:2109.05052); the types and rules here are our own and need no
tagger: they look at the question's first words and at the shape of the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from headwise.heads.errors import PromptError
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.mentions import find_mentions, mentions
from headwise.prompts.passages import Passage

LONGEST = 6  # words of an answer; longer ones are sentences, which do not fit into another passage
MONTH = r"(?:january|february|march|april|may|june|july|august|september|october|november|december)"
NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|"
    "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion"
)
_DATE = re.compile(rf"\b{MONTH}\b.*\d|\d.*\b{MONTH}\b", re.IGNORECASE)
_YEAR = re.compile(r"(?:the |early |mid |late |since |in )*\d{4}s?(?:[-–/]\d{2,4})?", re.IGNORECASE)
_NUMBER = re.compile(rf"(?:\W*\d[\d.,:]*|(?:{NUMBER_WORDS})\b).*", re.IGNORECASE)
_PERSON = re.compile(r"\bwho(?:se|m|'s|s)?\b|\b(?:actor|actress|singer|author|president|composer|director)\b", re.IGNORECASE)
_PLACE = re.compile(r"\bwhere\b|\b(?:country|city|state|place|town|capital|continent|county|river|island)\b", re.IGNORECASE)
NO_PASSAGE, NOT_THERE = "there is no passage", "the passage does not mention the answer"
TOO_LONG = f"the answer has more than {LONGEST} words"
NO_SUBSTITUTE, STILL_THERE = "no other answer of its type fits", "the passage still mentions the answer"


def answer_kind(question: str, answer: str) -> str:
    """The type of an answer: date, year, number, person, place, name, or phrase.

    Args:
        question: Its words decide between person, place and name.
        answer: Its shape decides the rest; whatever begins without a capital is a phrase.
    """
    text = answer.strip()
    if _DATE.search(text):
        return "date"
    if _YEAR.fullmatch(text):
        return "year"
    if _NUMBER.fullmatch(text):
        return "number"
    if not re.sub(r"^(?:the|a|an) ", "", text)[:1].isupper():
        return "number" if any(map(str.isdigit, text)) else "phrase"
    first = min(((found.start(), kind) for kind, found in _asked(question)), default=None)
    return "name" if first is None else first[1]


def swap_answers(records: Sequence[KnowledgeRecord], seed: int = 0, dropped: Counter[str] | None = None) -> list[KnowledgeRecord]:
    """Replace every mention of the answer and its aliases in each passage by the answer of another record, of the same type.

    The substitute is drawn with the seed among the answers of that type; its length is that of the answer, give or take a word,
    if one fits. Its first word differs from that of every right answer, it contains none and is contained in none, and neither passage nor
    question mentions it.

    Args:
        records: A `kind` that is set is the type; where it is empty `answer_kind` tells it. Records that are swapped already stay as they are.
        seed: Of the draws, at least 0. The draw of a record depends on the seed, its place and the answers of its type.
        dropped: Counts records that cannot be swapped by reason, if given.

    Returns:
        Those that can be swapped, in order, with `kind`, `swapped` and `swapped_answer`.

    Raises:
        PromptError: A negative seed.
    """
    if seed < 0:
        raise PromptError(f"the seed must be at least 0; got {seed}")
    typed = [r if r.kind else replace(r, kind=answer_kind(r.question, r.answers[0])) for r in records]
    reasons = [_unfit(record) for record in typed]
    pools: dict[str, dict[str, None]] = {}
    for record, reason in zip(typed, reasons, strict=True):
        if reason in ("", NO_PASSAGE) and len(record.answers[0].split()) <= LONGEST:
            pools.setdefault(record.kind, {})[record.answers[0]] = None
    out = []
    for place, (record, reason) in enumerate(zip(typed, reasons, strict=True)):
        if record.swapped is None and not reason:
            record, reason = _swapped(record, list(pools[record.kind]), np.random.default_rng([seed, 31, place]))
        if record.swapped is not None:
            out.append(record)
        elif dropped is not None:
            dropped[reason] += 1
    return out


def substitutes(answers: Sequence[str], around: str, pool: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Answers of other questions that can stand for a wrong one, in random order; first those of about the same number of words.

    Args:
        answers: The right answer and its aliases.
        around: Text that must not mention the wrong one.
        pool: Answers of the same kind.
        rng: Source of chance.
    """
    words = len(answers[0].split())
    order = sorted(rng.permutation(len(pool)), key=lambda drawn: abs(len(pool[drawn].split()) - words) > 1)
    for substitute in (pool[drawn] for drawn in order):
        if not mentions(around, (substitute,)) and not any(_alike(substitute, answer) for answer in answers):
            yield substitute


def fact_passages(records: Sequence[KnowledgeRecord], sentences: int = 4, seed: int = 0) -> list[KnowledgeRecord]:
    """Give records without a passage one that is made of completed sentences: their own and those of other records.

    For questions that are the beginning of a sentence (LRE relations, known facts). The others are of the same `kind` where enough have
    another subject and another answer, and none of them mentions an answer of the record.

    Args:
        records: Those with a passage stay as they are.
        sentences: How many a passage has, at least 1.
        seed: Of the others and the order, at least 0.

    Returns:
        As many records, in order.

    Raises:
        PromptError: Fewer sentences than 1, or a negative seed.
    """
    if sentences < 1 or seed < 0:
        raise PromptError(f"sentences must be at least 1 and the seed at least 0; got {sentences} and {seed}")
    return [
        record if record.passage is not None else _told(record, place, records, sentences, seed)
        for place, record in enumerate(records)
    ]


def _told(record: KnowledgeRecord, place: int, records: Sequence[KnowledgeRecord], sentences: int, seed: int) -> KnowledgeRecord:
    rng = np.random.default_rng([seed, 41, place])
    order = sorted(rng.permutation(len(records)), key=lambda i: records[i].kind != record.kind)
    chosen = [f"{record.question} {record.answers[0]}."]
    for other in (records[i] for i in order):
        if len(chosen) == sentences:
            break
        sentence = f"{other.question} {other.answers[0]}."
        if other.subject != record.subject and sentence not in chosen and not mentions(sentence, record.answers):
            chosen.append(sentence)
    return replace(record, passage=Passage(" ".join(chosen[i] for i in rng.permutation(len(chosen)))))


def _asked(question: str) -> list[tuple[str, re.Match[str]]]:
    found = (("person", _PERSON.search(question)), ("place", _PLACE.search(question)))
    return [(kind, match) for kind, match in found if match]


def _unfit(record: KnowledgeRecord) -> str:
    """Why a record cannot be swapped; empty if it can."""
    if record.passage is None:
        return NO_PASSAGE
    if len(record.answers[0].split()) > LONGEST:
        return TOO_LONG
    return "" if mentions(record.passage.text, record.answers[:1]) else NOT_THERE


def _swapped(record: KnowledgeRecord, pool: Sequence[str], rng: np.random.Generator) -> tuple[KnowledgeRecord, str]:
    """The record with the first substitute that fits, or as it is with the reason why none does."""
    passage = record.passage or Passage("")
    around = f"{passage.title}\n{passage.text}\n{record.question}"
    for substitute in substitutes(record.answers, around, pool, rng):
        made = Passage(*(_replaced(text, record.answers, substitute) for text in passage))
        if mentions(f"{made.title}\n{made.text}", record.answers):
            return record, STILL_THERE
        return replace(record, swapped=made, swapped_answer=substitute), ""
    return record, NO_SUBSTITUTE


def _alike(one: str, other: str) -> bool:
    """Whether two answers begin with the same word, or one contains the other."""
    first = [re.findall(r"\w+", text.lower())[:1] for text in (one, other)]
    return first[0] == first[1] or mentions(one, (other,)) or mentions(other, (one,))


def _replaced(text: str, answers: Sequence[str], substitute: str) -> str:
    parts, done = [], 0
    for start, stop in find_mentions(text, answers):
        parts += [text[done:start], substitute]
        done = stop
    return "".join((*parts, text[done:]))
