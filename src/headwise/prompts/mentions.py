"""Where an answer is mentioned in a text: whole words, in characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# Scripts that put no space between words, as ranges of `re`: Thai, Lao, Tibetan; Burmese; Khmer; Chinese and Japanese (also half-width kana).
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
# Spells foreign names, so that a run of it is a word: India is no part of Indonesia.
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
NUMERALS = "〇零一二三四五六七八九十百千万萬億亿兆"  # a run of them is one number


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

    A mention is made of whole words: "7" is not found in "17", "1.7" or "7,731". Chinese, Japanese, Thai and other scripts that put no space
    between words show no such limits, so what is written in them is found wherever it stands, and ends a word of another script beside it; only a
    run of katakana or of Chinese numerals counts as one word. Capitals are ignored unless the phrase has no small letter ("US" is not "us"); any
    white space stands for any other.

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


def begins_word(phrase: str) -> str:
    """A pattern of `re`, as wide as nothing: what stands in front of a phrase is no part of its first word. Empty where anything may stand there."""
    before = _joined(phrase[0])
    return f"(?<!{before})" if before else ""


def _joined(edge: str) -> str:
    """The characters that would make a longer word with the one at the edge of a phrase, as a pattern for one of them; empty if there are none."""
    if re.match(rf"[{KATAKANA}]", edge):
        return f"[{KATAKANA}]"
    if edge in NUMERALS:
        return f"[{NUMERALS}]"
    spaced = rf"(?:\d|[^\W{UNSPACED}])"
    return spaced if re.match(spaced, edge) else ""


def _pattern(phrase: str) -> str:
    words = r"\s+".join(map(re.escape, phrase.split()))
    words = words if phrase.upper() == phrase else f"(?i:{words})"
    front, behind = begins_word(phrase), _joined(phrase[-1])
    front = front and front + r"(?<!\d[.,])"
    back = f"(?!{behind})" + r"(?![.,]\d)" if behind else ""
    return front + words + back
