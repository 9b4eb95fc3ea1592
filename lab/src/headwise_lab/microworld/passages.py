"""Several passages with known gold ones and hard distractors (QRHead, CAFE, MuDAF)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwise_lab.microworld.chain import chain_turn, draw_chain, tell_first
from headwise_lab.microworld.facts import Fact, Page, Scene
from headwise_lab.microworld.options import choice, count, share
from headwise_lab.microworld.phrases import filler_sentence
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example, Exchange

STYLES = ("numbered", "titled")
Body = list[Fact]


def make(
    rng: np.random.Generator,
    split: str,
    n: int = 6,
    hops: int = 1,
    hard: float = 0.5,
    style: str = "numbered",
    questions: int = 1,
) -> Example:
    """Passages of two or three sentences, each about one entity, and a question.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        n: Passages, from hops to 200.
        hops: 1, or 2 for a question whose two facts stand in two passages.
        hard: Share in [0, 1] of the other passages that have the relation asked for (of another entity), the entity asked for (in
            another relation), or a decoy of the chain.
        style: `numbered` ("Passage 3:") or `titled` ("[3] Name").
        questions: Turns; those before the last ask about other facts of any passage.

    Returns:
        An example whose info has facts, gold (numbers of the facts needed), gold_passages (numbers), kinds (gold, hard,
        background per passage) and answer.

    Raises:
        HeadwiseError: Options out of range.
    """
    count("hops", hops, 1, 2)
    count("n", n, hops, 200)
    choice("style", style, STYLES)
    count("questions", questions, 1, n + 1)
    scene = Scene(rng, split)
    golds, decoys = _one(scene) if hops == 1 else _two(scene)
    amount = min(round(share("hard", hard) * (n - hops)), n - hops)
    relation = golds[-1][0].relation
    while len(decoys) < amount:
        decoys.append([scene.fact(relations()[relation]) or scene.other()])
    bodies = [("gold", body) for body in golds] + [("hard", body) for body in decoys[:amount]]
    bodies += [("background", [scene.other(relation)]) for _ in range(n - len(bodies))]
    target = [body[0] for body in golds]
    for kind, body in bodies:
        _pad(scene, body, relation if kind == "background" else "")
    return _written(scene, bodies, target, rng.permutation(n).tolist(), style, questions)


def _one(scene: Scene) -> tuple[list[Body], list[Body]]:
    """The gold passage's fact; hard: the same relation of others, the same entity in another relation."""
    target = scene.other()
    relation = relations()[target.relation]
    same = [scene.fact(relation), scene.any_fact(target.entity, relation.subject, but=relation.name), scene.fact(relation)]
    return [[target]], [[fact] for fact in same if fact]


def _two(scene: Scene) -> tuple[list[Body], list[Body]]:
    chain = draw_chain(scene, decoys=9)
    return [[chain.first], [chain.second]], [[fact] for fact in chain.decoys]


def _pad(scene: Scene, body: Body, but: str) -> None:
    """Other facts about the passage's entity, so that there are two or three."""
    lead = body[0]
    kind = relations()[lead.relation].subject
    for _ in range(1 + int(scene.rng.random() * 2)):
        fact = scene.any_fact(lead.entity, kind, but)
        if fact:
            body.append(fact)


def _written(
    scene: Scene, bodies: Sequence[tuple[str, Body]], target: Sequence[Fact], order: list[int], style: str, questions: int
) -> Example:
    page, numbers, gold = Page(scene), {}, []
    for number, which in enumerate(order, 1):
        kind, body = bodies[which]
        name = f"passage/{number}"
        header(page, number, body[0].entity if style == "titled" else None)
        for i in scene.rng.permutation(len(body)):
            fact = body[i]
            first = len(target) == 2 and fact is target[0]
            numbers[fact] = tell_first(page, fact, name) if first else page.fact(fact, name)
        if len(body) == 1:
            page.text(" " + filler_sentence(scene.rng, scene.split), name, "filler")
        if kind == "gold":
            gold.append(number)
    earlier = page.turns(questions - 1, numbers[target[-1]])
    turns = [*earlier, _turn(page, [numbers[fact] for fact in target])]
    kinds = tuple(bodies[which][0] for which in order)
    info = {"gold": tuple(numbers[fact] for fact in target), "gold_passages": tuple(gold), "kinds": kinds}
    return page.example("passages", turns, **info, answer=target[-1].value)


def header(page: Page, number: int, title: str | None = None) -> None:
    """The line or tag that opens a passage.

    Args:
        page: Where it is written.
        number: Of the passage, from 1.
        title: Its title; None: it is numbered only.
    """
    if page.pieces:
        page.text("\n")
    page.text(f"Passage {number}:" if title is None else f"[{number}] {title}\n", f"passage/{number}")


def _turn(page: Page, numbers: Sequence[int]) -> Exchange:
    return page.turn(numbers[0]) if len(numbers) == 1 else chain_turn(page, numbers[0], numbers[1], steps=False)
