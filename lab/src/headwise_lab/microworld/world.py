"""The fixed world: people and facts that a model is to know by heart, the same for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise_lab.microworld.facts import Fact
from headwise_lab.microworld.names import names, pick, words

SEED = 1
CHOICES = ("asked", "stated_only", "any")
_RELATIONS = (
    ("lives_in", "place"),
    ("born_in", "place"),
    ("travels_to", "place"),
    ("works_as", "trade"),
    ("pet", "animal"),
    ("instrument", "instrument"),
    ("food", "food"),
    ("door", "colour"),
)


@dataclass(frozen=True)
class World:
    """People and what is true of them.

    Attributes:
        people: Names.
        facts: All of them, two per person.
        stated_only: (entity, relation) that training may state but never ask.
    """

    people: tuple[str, ...]
    facts: tuple[Fact, ...]
    stated_only: frozenset[tuple[str, str]]

    def value(self, entity: str, relation: str) -> str:
        """What the world says.

        Args:
            entity: Name of a person.
            relation: Name of a relation.

        Raises:
            HeadwiseError: It says nothing about that.
        """
        for fact in self.facts:
            if fact[:2] == (entity, relation):
                return fact.value
        raise HeadwiseError(f"the world knows nothing about {entity!r} and {relation!r}; World.facts lists what it knows")

    def choose(self, which: str) -> Sequence[Fact]:
        """The facts that are `asked` about in training, the `stated_only` ones, or `any`.

        Raises:
            HeadwiseError: Any other word.
        """
        if which not in CHOICES:
            raise HeadwiseError(f"unknown choice of facts {which!r}; choose one of {', '.join(CHOICES)}")
        return self._chosen[which]

    def of(self, entity: str) -> list[Fact]:
        """All facts about one person."""
        return [fact for fact in self.facts if fact.entity == entity]

    @cached_property
    def _chosen(self) -> dict[str, tuple[Fact, ...]]:
        never = tuple(fact for fact in self.facts if fact[:2] in self.stated_only)
        return {"any": self.facts, "stated_only": never, "asked": tuple(f for f in self.facts if f not in never)}


@cache
def make_world(seed: int = SEED, people: int = 120, places: int = 40, stated_only: float = 0.2) -> World:
    """Build a world of people with two facts each.

    Names come from a pool that no split uses; towns are of the same pool, other values ordinary words of the training lists.

    Args:
        seed: Of everything; every lab model was trained on the default.
        people: How many.
        places: Towns, at least 2.
        stated_only: Share of the facts that training may state but never ask, in [0, 1].

    Raises:
        HeadwiseError: More people than there are names, or none.
    """
    most = len(names("person", "world"))
    if not 1 <= people <= most:
        raise HeadwiseError(f"a world has 1 to {most} people; got {people}")
    rng = np.random.default_rng([seed, 77])
    persons = [names("person", "world")[i] for i in rng.permutation(most)[:people]]
    towns = [names("place", "world")[i] for i in rng.permutation(len(names("place", "world")))[: max(2, places)]]
    facts: list[Fact] = []
    for person in persons:
        for i in rng.permutation(len(_RELATIONS))[:2]:
            relation, kind = _RELATIONS[i]
            values = towns if kind == "place" else words(kind, "world")
            known = {fact.value for fact in facts[-1:] if fact.entity == person}
            facts.append(Fact(person, relation, pick(rng, [v for v in values if v not in known])))
    hidden = rng.permutation(len(facts))[: round(stated_only * len(facts))]
    return World(tuple(persons), tuple(facts), frozenset(facts[i][:2] for i in hidden))


def known_facts(split: str, which: str | None, world: World) -> Sequence[Fact]:
    """Facts that a split may ask about.

    Args:
        split: Training asks only the `asked` ones.
        which: See `World.choose`; None: `asked` in training, `any` elsewhere.
        world: The world.

    Raises:
        HeadwiseError: Facts that training never asks, or an unknown choice.
    """
    if split == "train" and which not in (None, "asked"):
        raise HeadwiseError(f"training never asks facts {which!r}; leave `which` out or use the splits selection and test")
    return world.choose(which or ("asked" if split == "train" else "any"))
