"""Which claims of an answer do the documents support? Exact, because every sentence of the micro-world can be read back."""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cache
from typing import NamedTuple

from headwise.heads.errors import HeadwiseError
from headwise.prompts.words import SPLITS
from headwise_lab.microworld.facts import Fact
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example

LABELS = ("supported", "fabricated", "mis_combined", "unreadable")
_ENTITY, _VALUE = r"(?P<e>[A-Z][a-z]+)", r"(?P<v>[A-Za-z0-9][\w'-]*(?: [\w'-]+){0,2})"


class Claim(NamedTuple):
    """One sentence of an answer.

    Attributes:
        text: The sentence with its full stop.
        label: One of `LABELS`.
        fact: What it says; None if it cannot be read.
    """

    text: str
    label: str
    fact: Fact | None


def check_support(answer: str, example: Example) -> list[Claim]:
    """The claims of a generated answer, judged by the facts in the example's context.

    A claim is `supported` if the documents say so; `mis_combined` if they hold the value, but not for this entity and relation;
    `fabricated` if they do not hold the value; `unreadable` if it is no sentence in a wording of any split.

    Args:
        answer: What the model said. A sentence that is cut off is read if only its stop is missing.
        example: What it was asked.

    Returns:
        One claim per sentence; none for an empty answer.

    Raises:
        HeadwiseError: The example has no facts.
    """
    if "facts" not in example.info:
        raise HeadwiseError(f"an example of the task {example.task!r} has no facts to check an answer against")
    return claims_of(answer, set(example.info["facts"]))


def claims_of(answer: str, told: Set[Fact]) -> list[Claim]:
    """The claims of an answer, judged by facts; labels as in `check_support`.

    Args:
        answer: What was said.
        told: What the documents say.
    """
    values = {fact.value for fact in told}
    return [_claim(sentence, told, values) for sentence in sentences_in(answer)]


def sentences_in(text: str) -> list[str]:
    """The sentences of a text of the micro-world, whose values hold no full stop; each ends with one."""
    return [f"{part.strip()}." for part in re.split(r"[.\n]", text) if part.strip()]


def read_sentence(sentence: str) -> list[Fact]:
    """Every fact that a sentence may state, the wording with the most fixed letters first."""
    found = []
    for length, relation, pattern in _patterns():
        match = pattern.fullmatch(sentence)
        if match:
            found.append((length, Fact(match["e"], relation, match["v"])))
    best = max((length for length, _ in found), default=0)
    return [fact for length, fact in found if length == best]


def _claim(sentence: str, told: Set[Fact], values: Set[str]) -> Claim:
    facts = read_sentence(sentence)
    if not facts:
        return Claim(sentence, "unreadable", None)
    for fact in facts:
        if fact in told:
            return Claim(sentence, "supported", fact)
    return Claim(sentence, "mis_combined" if facts[0].value in values else "fabricated", facts[0])


@cache
def _patterns() -> tuple[tuple[int, str, re.Pattern[str]], ...]:
    made = []
    for relation in relations().values():
        for split in SPLITS:
            for wording in relation.statements[split]:
                text = re.escape(wording.text).replace(r"\{e\}", _ENTITY).replace(r"\{v\}", _VALUE)
                made.append((len(wording.fill("")), relation.name, re.compile(text)))
    return tuple(made)
