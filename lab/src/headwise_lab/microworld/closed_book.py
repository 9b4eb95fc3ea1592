"""Facts of the fixed world: stated in texts without questions, or asked without a text."""

from __future__ import annotations

import numpy as np

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.facts import Page, Scene, question_pieces
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import count
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example, Exchange
from headwise_lab.microworld.world import World, known_facts, make_world


def make(
    rng: np.random.Generator, split: str, questions: int = 1, which: str | None = None, world: World | None = None
) -> Example:
    """Questions about facts of the world, with no context.

    Args:
        rng: Source of chance.
        split: Whose wordings are used.
        questions: Turns, about different facts; at least 1.
        which: Facts to ask about: `asked` (all that training asks), `stated_only` or `any`; None: see `known_facts`.
        world: The world; None: that of `make_world()`.

    Returns:
        An example whose info has facts (one per turn) and answer (of the last).

    Raises:
        HeadwiseError: More questions than facts, or facts that this split may not ask.
    """
    chosen = known_facts(split, which, world or make_world())
    page = Page(Scene(rng, split))
    picked = [chosen[i] for i in rng.permutation(len(chosen))[: count("questions", questions, 1, len(chosen))]]
    turns = []
    for fact in picked:
        asked = pick(rng, relations()[fact.relation].questions[split])
        turns.append(Exchange(question_pieces(asked, fact.entity), (Piece(" " + fact.value),)))
    made = page.example("closed_book", turns)
    return Example(made.task, split, (), made.turns, {**made.info, "facts": tuple(picked)})


def make_text(rng: np.random.Generator, split: str, facts: int = 12, world: World | None = None) -> Example:
    """A text without questions that states facts of the world, from which they can be learned by heart.

    Args:
        rng: Source of chance.
        split: Whose wordings are used.
        facts: How many, at least 1.
        world: As for `make`.

    Returns:
        An example of the task `world_text`, without turns.

    Raises:
        HeadwiseError: More facts than the world has.
    """
    known = (world or make_world()).facts
    page = Page(Scene(rng, split))
    for i in rng.permutation(len(known))[: count("facts", facts, 1, len(known))]:
        page.fact(known[i])
    return page.example("world_text", [])
