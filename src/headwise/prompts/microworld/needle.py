"""Needle questions: one fact among filler sentences and facts that look like it."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.microworld.facts import Page, Scene, filler_for, lay_out
from headwise.prompts.microworld.options import count, share
from headwise.prompts.microworld.text import Example


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 6,
    words: int = 60,
    questions: int = 1,
    depth: float | None = None,
    hard: float = 0.6,
    filler: Any = None,
) -> Example:
    """A context of sentences in random order, then questions about facts in it.

    facts: distractors besides the needle, a share `hard` of which has the entity or the relation of the needle. words: of filler;
    filler: (rng, words) -> sentences to use instead of ours. questions: turns, about different facts. depth: place of the needle,
    the fact of the last turn (None: anywhere). info: facts, gold (number of each turn's fact), answer.
    """
    count("questions", questions, 1, facts + 1)
    scene = Scene(rng, split)
    target = scene.other()
    told = [target, *(scene.distractor(target, share("hard", hard)) for _ in range(count("facts", facts, 0, 400)))]
    page = Page(scene)
    at = None if depth is None else (0, share("depth", depth))
    numbers = lay_out(page, told, filler_for(scene, words, filler), at)
    others = [told[1 + i] for i in rng.permutation(len(told) - 1)[: questions - 1]] if questions > 1 else []
    gold = tuple(numbers[fact] for fact in (*others, target))
    return page.example("needle", [page.turn(number) for number in gold], gold=gold)
