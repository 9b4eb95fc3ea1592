"""Answer metrics on text: unigram recall and exact match."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

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


def judged(answer: str, gold: str) -> dict[str, Any]:
    """How good an answer is, as it stands in the description of a run: {"answer", "recall" in [0, 1], "exact"}."""
    return {"answer": answer, "recall": unigram_recall(answer, gold), "exact": exact_match(answer, gold)}
