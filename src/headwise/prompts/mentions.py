"""Where an answer is mentioned in a text: whole words, in characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Mention(NamedTuple):
    """A mention of a phrase in a text.

    Attributes:
        start: First character.
        stop: Behind its last character.
    """

    start: int
    stop: int


def find_mentions(text: str, phrases: Iterable[str]) -> list[Mention]:
    """All mentions of any of the phrases, none of which overlap; where several begin at one place, the longest.

    A mention is made of whole words: "7" is not found in "17", "1.7" or "7,731". Capitals are ignored unless the phrase has no small letter
    ("US" is not "us"); any white space stands for any other.

    Args:
        text: What is searched.
        phrases: Such as an answer and its aliases; empty ones are ignored.

    Returns:
        From the first to the last.
    """
    wanted = sorted({" ".join(phrase.split()) for phrase in phrases} - {""}, key=len, reverse=True)
    if not wanted:
        return []
    either = "|".join(_pattern(phrase) for phrase in wanted)
    return [Mention(*found.span()) for found in re.finditer(either, text)]


def mentions(text: str, phrases: Iterable[str]) -> bool:
    """Whether any of the phrases is mentioned; see `find_mentions`."""
    return bool(find_mentions(text, phrases))


def _pattern(phrase: str) -> str:
    words = r"\s+".join(map(re.escape, phrase.split()))
    words = words if phrase.upper() == phrase else f"(?i:{words})"
    front = r"(?<!\w)(?<!\d[.,])" if re.match(r"\w", phrase) else ""
    back = r"(?!\w)(?![.,]\d)" if re.search(r"\w$", phrase) else ""
    return front + words + back
