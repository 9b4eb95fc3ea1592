"""Labelled queries with their passages: JSON lines of the user, and needle questions over passages of novels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import PromptError
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.needles import bundled_needles
from headwise.prompts.passages import Passage, RankingExample, passage_of, read_rows

PASSAGE_WORDS = 40
WANTED = '{"query": "...", "passages": ["...", {"title": "...", "text": "..."}], "gold": [0]}'


def read_ranking_examples(path: str | Path) -> list[RankingExample]:
    """One query per line: `query`, `passages` (texts, or objects with text and title), `gold` (indices from 0), `id` if wanted.

    Raises:
        PromptError: the file cannot be read, or a line is no example; file and line are named.
    """
    return [_example(row, place) for place, row in read_rows(Path(path), "queries")]


def needle_examples(count: int, passages: int, seed: int = 0) -> list[RankingExample]:
    """Queries over passages of the bundled novels; one passage of each holds the sentence that answers the query.

    Queries are the questions of the bundled needles of the detection split, in turn. A passage has about `PASSAGE_WORDS` words.

    Args:
        count: number of queries.
        passages: number of passages of each query.
        seed: of passages and of the gold passage's place; at least 0.

    Returns:
        `count` examples; an example depends on its number and the seed, so more of them begin with the same ones.

    Raises:
        PromptError: a negative seed.
    """
    if seed < 0:
        raise PromptError(f"the seed must be at least 0; got {seed}")
    words = [word for text in bundled_texts() for word in text.split()]
    needles = bundled_needles("detect")
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, 29, number])
        places = rng.choice(len(words) // PASSAGE_WORDS, size=passages, replace=False) * PASSAGE_WORDS
        texts = [words[place : place + PASSAGE_WORDS] for place in places]
        needle, gold = needles[number % len(needles)], int(rng.integers(passages))
        at = int(rng.integers(PASSAGE_WORDS))
        texts[gold] = [*texts[gold][:at], *needle.needle.split(), *texts[gold][at:]]
        made.append(RankingExample(needle.question, tuple(Passage(" ".join(text)) for text in texts), frozenset({gold})))
    return made


def _example(row: Any, place: str) -> RankingExample:
    if not isinstance(row, Mapping) or not {"query", "passages", "gold"} <= set(row):
        raise PromptError(f"{place}: expected {WANTED}")
    query, passages, gold = row["query"], row["passages"], row["gold"]
    if not isinstance(query, str) or not query.strip():
        raise PromptError(f"{place}: the query is empty or no text")
    if not isinstance(passages, Sequence) or isinstance(passages, str) or not passages:
        raise PromptError(f"{place}: passages must be a list that is not empty")
    if not isinstance(gold, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in gold):
        raise PromptError(f"{place}: gold must be a list of passage numbers from 0; got {str(gold)[:60]}")
    made = tuple(passage_of(passage, place) for passage in passages)
    wrong = [i for i in gold if not 0 <= i < len(made)]
    if wrong:
        raise PromptError(f"{place}: gold passage {wrong[0]} does not exist; there are {len(made)}")
    return RankingExample(query, made, frozenset(gold), str(row.get("id", "")))
