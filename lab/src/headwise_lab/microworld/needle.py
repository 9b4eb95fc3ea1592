"""Needle questions: one fact among filler sentences and facts that look like it."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise_lab.microworld.facts import Fact, Page, Scene, filler_for, lay_out
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import count, share
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 6,
    words: int = 60,
    questions: int = 1,
    depth: float | None = None,
    hard: float = 0.6,
    kinds: int | None = None,
    filler: Any = None,
) -> Example:
    """A context of sentences in random order, then questions about facts in it.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        facts: Distractors besides the needle, from 0 to 400.
        words: Of filler.
        questions: Turns, about different facts; the needle is the fact of the last.
        depth: Place of the needle, in [0, 1]; None: anywhere.
        hard: Share of the distractors that have the entity or the relation of the needle, in [0, 1].
        kinds: Instead of `hard`: all facts are of so many relations and about different entities, so that with 1 only the entity
            tells them apart (fewer facts if values run out).
        filler: (rng, words) -> sentences to use instead of ours.

    Returns:
        An example whose info has facts, gold (number of each turn's fact) and answer.

    Raises:
        HeadwiseError: Options out of range.
    """
    count("questions", questions, 1, facts + 1)
    scene = Scene(rng, split)
    target = scene.other()
    count("facts", facts, 0, 400)
    if kinds is None:
        told = [target, *(scene.distractor(target, share("hard", hard)) for _ in range(facts))]
    else:
        told = [target, *_alike(scene, target, facts, count("kinds", kinds, 1, len(relations())))]
        questions = min(questions, len(told))
    page = Page(scene)
    at = None if depth is None else (0, share("depth", depth))
    numbers = lay_out(page, told, filler_for(scene, words, filler), at)
    others = [told[1 + i] for i in rng.permutation(len(told) - 1)[: questions - 1]] if questions > 1 else []
    gold = tuple(numbers[fact] for fact in (*others, target))
    return page.example("needle", [page.turn(number) for number in gold], gold=gold)


def _alike(scene: Scene, target: Fact, facts: int, kinds: int) -> list[Fact]:
    """Facts about new entities, in the relation of the target and kinds - 1 others."""
    others = [relation for name, relation in relations().items() if name != target.relation]
    chosen = [relations()[target.relation], *(others[i] for i in scene.rng.permutation(len(others))[: kinds - 1])]
    made = (scene.fact(pick(scene.rng, chosen)) for _ in range(facts))
    return [fact for fact in made if fact]
