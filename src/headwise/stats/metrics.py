"""Answer metrics on text: unigram recall, exact match, how an answer begins."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

STOPS = ".。｡．"
WORD = re.compile(r"\w+")
# Scripts without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan. Their letters count one by one, marks with
# the letter in front of them.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3\u3099\u309a\ufe00-\ufe0f"
_UNIT = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|[^\W{_UNSPACED}]+")


def units(text: str) -> list[str]:
    """What answers are compared by: words; in scripts without spaces between words, characters. Case is ignored.

    Full-width letters and digits count as the usual ones. Text without such scripts is split as it always was, at what is no letter or digit.
    """
    folded = text.casefold()
    if not re.search(f"[{_UNSPACED}]", folded):
        return WORD.findall(folded)
    return _UNIT.findall(unicodedata.normalize("NFKC", folded))


def unigram_recall(answer: str, gold: str) -> float:
    """ROUGE-1 recall without stemming: the share of the gold answer's `units` that occur in the answer.

    Args:
        answer: what the model said.
        gold: the right answer.

    Returns:
        A number in [0, 1]; a unit that the gold answer holds twice must be said twice. 0 for a gold answer without units.
    """
    wanted, given = Counter(units(gold)), Counter(units(answer))
    total = sum(wanted.values())
    return sum((wanted & given).values()) / total if total else 0.0


def exact_match(answer: str, gold: str) -> bool:
    """Whether the first line of an answer is the gold answer.

    Args:
        answer: what the model said.
        gold: the right answer; case counts, outer white space and a closing full stop do not.
    """
    line = answer.strip().split("\n")[0]
    return line.strip().rstrip(STOPS).strip() == gold.strip().rstrip(STOPS).strip()


def begins_with(answer: str, gold: str) -> bool:
    """Whether an answer begins with the gold answer, whole words of it: "a" does not begin "apple", nor "Paris" "Parisian".

    Args:
        answer: what the model said.
        gold: the right answer; case, outer white space and `the` in front of either do not count. Behind it no letter of a script with spaces
            between words, and no digit, may stand.
    """
    said, wanted = _bare(answer), _bare(gold)
    behind = said[len(wanted) : len(wanted) + 1]
    return said.startswith(wanted) and not (behind.isalnum() and unicodedata.category(behind) != "Lo")


def _bare(text: str) -> str:
    return text.strip().casefold().removeprefix("the ").strip()


def judged(answer: str, gold: str) -> dict[str, Any]:
    """How good an answer is, as it stands in the description of a run.

    Args:
        answer: what the model said.
        gold: the right answer.

    Returns:
        `answer` (the text), `recall` (see `unigram_recall`) and `exact` (see `exact_match`).
    """
    return {"answer": answer, "recall": unigram_recall(answer, gold), "exact": exact_match(answer, gold)}
