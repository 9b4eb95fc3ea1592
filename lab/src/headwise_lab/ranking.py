"""Ranking examples of the micro-world: several passages, one query that shares no word of meaning with the passage that answers it."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.passages import Passage, RankingExample
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.texts import Example


def from_microworld(example: Example) -> RankingExample:
    """The last question of a `passages` text."""
    count = len(example.info["kinds"])
    texts = ["".join(p.text for p in example.context if f"passage/{i}" in p.names) for i in range(1, count + 1)]
    passages = tuple(Passage(text.split(":", 1)[1].strip()) for text in texts)
    query = "".join(piece.text for piece in example.turns[-1].ask).strip()
    return RankingExample(query, passages, frozenset(number - 1 for number in example.info["gold_passages"]))


def microworld_examples(count: int, split: str, seed: int = 0, n: int = 8, **options: Any) -> list[RankingExample]:
    """Queries over passages of the micro-world; a question shares no word of meaning with the passage that answers it.

    Args:
        count: How many.
        split: train, selection or test.
        seed: 0 or more; an example depends on it and on its number, so more of them begin with the same ones.
        n: Passages of each query.
        **options: See `headwise_lab.microworld.passages.make`.

    Raises:
        HeadwiseError: An unknown split or option, or an option out of range.
    """
    made = (make_example("passages", split, np.random.default_rng([seed, 23, i]), n=n, **options) for i in range(count))
    return [from_microworld(example) for example in made]
