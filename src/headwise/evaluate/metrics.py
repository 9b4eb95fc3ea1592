"""Answer metrics on text: unigram recall and exact match."""

from __future__ import annotations

import re
from collections import Counter

WORD = re.compile(r"\w+")


def unigram_recall(answer: str, gold: str) -> float:
    """Share of the gold answer's words that occur in the answer, with multiplicity, case ignored; in [0, 1] (ROUGE-1 recall, no stemming)."""
    wanted, given = Counter(WORD.findall(gold.casefold())), Counter(WORD.findall(answer.casefold()))
    total = sum(wanted.values())
    return sum((wanted & given).values()) / total if total else 0.0


def exact_match(answer: str, gold: str) -> bool:
    """Whether the first line of the answer is the gold answer, outer white space and a closing full stop aside."""
    line = answer.strip().split("\n")[0]
    return line.strip().rstrip(".").strip() == gold.strip().rstrip(".").strip()
