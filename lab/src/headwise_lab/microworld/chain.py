"""Chains of two facts: the value of the first is the subject of the second. With decoys that go astray at either step."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.facts import Fact, Page, Scene, nested, question_pieces
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.phrases import STEPS
from headwise_lab.microworld.relations import Relation, about, chains, relations, template
from headwise_lab.microworld.texts import Exchange, Pieces

# A step as a short note: sentences copied whole would be a test of copying, not of reasoning.
_NOTE = template("{e}: {v}.")


@dataclass(frozen=True)
class Chain:
    """Two facts that belong together, and others that could be taken for them.

    Attributes:
        first: Its value is the entity of `second`.
        second: Its value is the answer.
        decoys: Other facts, those of one decoy chain next to one another.
    """

    first: Fact
    second: Fact
    decoys: tuple[Fact, ...]


def draw_chain(scene: Scene, decoys: int = 4) -> Chain:
    """A chain and facts that could be taken for it.

    Decoys come in this order: another chain over the same relations; another relation of the first entity that leads to the
    second relation too; another relation of the bridge.

    Args:
        scene: Draws the names and values.
        decoys: How many at most; there are five or fewer.
    """
    while True:
        one, two = pick(scene.rng, chains())
        bridge = scene.name(one.value)
        first = scene.accept(Fact(scene.name(one.subject), one.name, bridge))
        second = scene.fact(two, bridge)
        if second:
            break
    made: list[Fact] = []
    made += _decoy_chain(scene, one, two, scene.name(one.subject))
    siblings = [r for r in about(one.subject) if r.value == one.value and r != one]
    if siblings:
        made += _decoy_chain(scene, pick(scene.rng, siblings), two, first.entity)
    extra = scene.any_fact(bridge, one.value, but=two.name)
    return Chain(first, second, (*made, *([extra] if extra else []))[:decoys])


def _decoy_chain(scene: Scene, one: Relation, two: Relation, entity: str) -> list[Fact]:
    bridge = scene.name(one.value)
    second = scene.fact(two, bridge)
    return [scene.accept(Fact(entity, one.name, bridge)), *([second] if second else [])]


def tell_first(page: Page, fact: Fact, *outer: str) -> int:
    """Tell the first fact of a chain, in a wording that some noun phrase can paraphrase.

    Args:
        page: Where it is told.
        fact: The fact.
        *outer: Further names of its span.

    Returns:
        The fact's number, from 1.
    """
    relation = relations()[fact.relation]
    usable = [w for w in relation.statements[page.split] if relation.nameable(page.split, w)]
    return page.fact(fact, *outer, wording=pick(page.rng, usable))


def chain_question(page: Page, first: int, second: int) -> Pieces:
    """Ask for the second value by a description of its subject, which names the first entity only.

    Args:
        page: Where both facts were told; the question shares no word of meaning with either.
        first: Number of the first fact.
        second: Number of the second fact.
    """
    one, two = (relations()[page.facts[n - 1].relation] for n in (first, second))
    phrase = pick(page.rng, one.nameable(page.split, page.wordings[first - 1]))
    asked = pick(page.rng, two.askable(page.split, page.wordings[second - 1]))
    return question_pieces(nested(asked, phrase), page.facts[first - 1].entity)


def chain_turn(page: Page, first: int, second: int, steps: bool) -> Exchange:
    """The two-hop question and its answer.

    Args:
        page: Where both facts were told.
        first: Number of the first fact.
        second: Number of the second fact.
        steps: The question asks for them (span `mode`), and the answer notes both facts as `entity: value.` before it gives the
            value.

    Returns:
        The turn, with the aliases needle, answer, bridge, hop/1, hop/2 and key.
    """
    value = Piece(" " + page.facts[second - 1].value, ("final",))
    answer, ask = [value], chain_question(page, first, second)
    if steps:
        ask = (*ask, Piece(" " + STEPS, ("mode",)))
        told = []
        for step, number in enumerate((first, second), 1):
            fact = page.facts[number - 1]
            told += _NOTE.render(fact.entity, fact.value, f"step/{step}")
        answer = [*told, Piece(" So:"), value]
    alias = {"needle": f"fact/{second}", "answer": f"fact/{second}/value", "bridge": f"fact/{first}/value"}
    alias |= {"hop/1": f"fact/{first}", "hop/2": f"fact/{second}", "key": f"fact/{first}/entity"}
    return Exchange(ask, tuple(answer), alias=alias)
