"""Questions over passages that need no data set: the bundled needles, each of them a passage that answers its own question."""

from __future__ import annotations

import numpy as np

from headwise.prompts.needles import bundled_needles
from headwise.prompts.passages import Passage, RankingExample


def needle_examples(split: str, count: int, passages: int) -> list[RankingExample]:
    """Questions with the needle that answers them among others of the same split, in an order that is seeded by the question.

    Args:
        split: See `bundled_needles`.
        count: Questions, at most as many as there are needles.
        passages: To a question.
    """
    needles = bundled_needles(split)
    out = []
    for number, needle in enumerate(needles[:count]):
        rng = np.random.default_rng([29, number])
        others = rng.permutation([i for i in range(len(needles)) if i != number])[: passages - 1]
        order = rng.permutation([number, *others])
        texts = tuple(Passage(needles[i].needle) for i in order)
        out.append(RankingExample(needle.question, texts, frozenset({order.tolist().index(number)}), answers=(needle.answer,)))
    return out
