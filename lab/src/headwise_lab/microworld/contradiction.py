"""Passages that contradict a fact of the world; the right answer is what the passage says."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise_lab.microworld.facts import Fact, Page, Scene, filler_for, lay_out
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import choice, count
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example
from headwise_lab.microworld.world import World, known_facts, make_world

VALUES = ("split", "world")


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 5,
    words: int = 30,
    values: str = "split",
    which: str | None = None,
    questions: int = 1,
    world: World | None = None,
    filler: Any = None,
) -> Example:
    """A needle question about a person of the world whose passage says something else than the world.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        facts: Distractors: other people of the world in the same relation, other relations of the same person, strangers.
        words: Of filler.
        values: Where the false value comes from: the split's own words (`split`), or what the world says about somebody else
            (`world`).
        which: As for `closed_book.make`.
        questions: Turns, about different facts; the last about the target.
        world: As for `closed_book.make`.
        filler: (rng, words) -> sentences to use instead of ours.

    Returns:
        An example whose info has facts, gold, world_value and answer (the passage's value).

    Raises:
        HeadwiseError: Options out of range, or no false value is left.
    """
    choice("values", values, VALUES)
    count("questions", questions, 1, facts + 1)
    world = world or make_world()
    true = pick(rng, known_facts(split, which, world))
    scene = Scene(rng, split)
    scene.reserve(*world.people, *(fact.value for fact in world.of(true.entity)))
    target = other_value(scene, true, values, world)
    told = [target]
    same = [f for f in world.facts if f.relation == true.relation and f.entity != true.entity]
    for _ in range(count("facts", facts, 0, 100)):
        told.append(_distractor(scene, target, same, values, world))
    page = Page(scene)
    numbers = lay_out(page, told, filler_for(scene, words, filler))
    gold = numbers[target]
    return page.example(
        "contradiction", [*page.turns(questions - 1, gold), page.turn(gold)], gold=(gold,), world_value=true.value
    )


def other_value(scene: Scene, true: Fact, values: str, world: World) -> Fact:
    """The same entity and relation with another value than the world's.

    Args:
        scene: Draws the value and takes the fact.
        true: What the world says.
        values: `split` or `world`, as for `make`; with `world` a new value where all of the world's are used.
        world: The world.

    Raises:
        HeadwiseError: No other value is left.
    """
    kind = relations()[true.relation].value
    if values == "world":
        known = {f.value for f in world.facts if relations()[f.relation].value == kind} - {true.value}
        free = [value for value in sorted(known) if value not in scene.used]
        value = pick(scene.rng, free) if free else scene.new(kind)
    else:
        value = scene.new(kind)
    if value is None:
        raise HeadwiseError(f"no other value is left for the relation {true.relation}; use fewer facts")
    return scene.accept(Fact(true.entity, true.relation, value))


def _distractor(scene: Scene, target: Fact, same: list[Fact], values: str, world: World) -> Fact:
    """A third each: another person of the world in this relation, another relation of this person, anything."""
    draw = scene.rng.random()
    if draw < 0.34:
        true = pick(scene.rng, same)
        if not scene.tells(true.entity, true.relation) and scene.values_left(true.relation) > 1:
            return other_value(scene, true, values, world)
    if draw < 0.67:
        known = {fact.relation for fact in world.of(target.entity)}
        fact = scene.any_fact(target.entity, "person", but=target.relation)
        if fact and fact.relation not in known:
            return fact
    return scene.other()
