"""Support: how far documents say what an answer says, sentence by sentence.

A checker scores pairs of a sentence and a chunk of a document in [0, 1]. A sentence counts by its best chunk, an answer by the mean of its
sentences, beside the share of answers that are supported throughout. Checkers of other packages are entry points of the group
`headwise.checkers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headwise.prompts.passages import Passage
from headwise.prompts.sentences import chunks_of, sentences_of
from headwise.stats.metrics import units

SUPPORTED = 0.5  # a sentence counts as supported from this score on
# English words that hold sentences together and say nothing about their content.
FUNCTION_WORDS = """a about after all also an and any are as at be because been before being but by can could did do does for from had has have
he her his how i if in into is it its may more most no not of on one or other our out over she should so some such than that the their them then
there these they this those to under until up was we were what when where which while who will with would you your"""
_FUNCTION = frozenset(FUNCTION_WORDS.split())
Values = NDArray[np.float64]


class SupportChecker(Protocol):
    """Says how far a text supports a sentence.

    Attributes:
        name: What tables call it.
    """

    name: str

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Values:
        """[n] support in [0, 1] of each (sentence, chunk of a document)."""

    def describe(self) -> dict[str, Any]:
        """All that decides the scores, as plain data."""


@runtime_checkable
class ErrorChecker(Protocol):
    """A checker that also tells what is wrong with a sentence."""

    def labels(self, sentences: Sequence[str], documents: Sequence[Passage]) -> list[str]:
        """One word per sentence: `supported`, or the type of its error."""


class LexicalOverlap:
    """The share of a sentence's content words that the chunk has: a baseline, and a weak one.

    It cannot see who did what to whom, a negation, or another number among many; whatever it says must be beaten by a real checker.
    """

    name = "lexical"

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Values:
        """[n] shares of words; a sentence of function words alone counts by all its words, and one without any word as 0."""
        return np.asarray([_overlap(sentence, chunk) for sentence, chunk in pairs], dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"checker": self.name}


@dataclass(frozen=True)
class AnswerSupport:
    """An answer of S sentences beside documents.

    Attributes:
        sentences: [S].
        scores: [S] support of each, that of its best chunk.
        chunks: [S] its best chunk; empty where there is no document.
        labels: [S] types of errors, where the checker tells them; else empty.
    """

    sentences: tuple[str, ...]
    scores: Values
    chunks: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over sentences, in [0, 1]; None for an answer without sentences."""
        return float(self.scores.mean()) if len(self.scores) else None

    @property
    def supported(self) -> float | None:
        """Share of the sentences that count as supported; None without sentences."""
        return float((self.scores >= SUPPORTED).mean()) if len(self.scores) else None

    @property
    def error(self) -> str:
        """Of the whole answer: `none`, `incomplete` (some sentences supported, some not), or `unsupported` (none is); empty without sentences."""
        share = self.supported
        return "" if share is None else "none" if share == 1 else "unsupported" if share == 0 else "incomplete"


def check_answer(checker: SupportChecker, answer: str, documents: Sequence[Passage]) -> AnswerSupport:
    """Check an answer against documents.

    Args:
        checker: Scores sentences.
        answer: What was said.
        documents: What it is to rest on; without any, nothing is supported.
    """
    return check_sentences(checker, sentences_of(answer), documents)


def check_sentences(checker: SupportChecker, sentences: Sequence[str], documents: Sequence[Passage]) -> AnswerSupport:
    """Check sentences against documents; arguments as for `check_answer`."""
    chunks = chunks_of(documents)
    labels = tuple(checker.labels(sentences, documents)) if isinstance(checker, ErrorChecker) else ()
    if not sentences or not chunks:
        return AnswerSupport(tuple(sentences), np.zeros(len(sentences)), ("",) * len(sentences), labels)
    table = checker.scores([(sentence, chunk) for sentence in sentences for chunk in chunks]).reshape(len(sentences), -1)
    best = table.argmax(axis=1)
    return AnswerSupport(tuple(sentences), table.max(axis=1), tuple(chunks[i] for i in best), labels)


def coverage(checker: SupportChecker, answer: str, references: Sequence[str]) -> float | None:
    """How much of the best reference an answer says: the mean support of the reference's sentences by the answer.

    Args:
        checker: Scores the reference's sentences against the answer.
        answer: What was said.
        references: Good answers.

    Returns:
        The largest value of any reference, in [0, 1]; None without references.
    """
    said = [Passage(answer)] if answer.strip() else []
    found = [check_answer(checker, reference, said).mean for reference in references]
    return max((value for value in found if value is not None), default=None)


def content_words(text: str) -> set[str]:
    """Words but those of `FUNCTION_WORDS`; all words where nothing is left."""
    words = set(units(text))
    return words - _FUNCTION or words


def _overlap(sentence: str, chunk: str) -> float:
    wanted = content_words(sentence)
    return len(wanted & set(units(chunk))) / len(wanted) if wanted else 0.0
