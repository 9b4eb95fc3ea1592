"""Grounded answers of several sentences (RHIO): documents that partly contradict the world, and all they say about somebody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.contradiction import other_value
from headwise_lab.microworld.facts import Fact, Page, Scene, question_pieces
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import choice, count
from headwise_lab.microworld.passages import header
from headwise_lab.microworld.phrases import GROUNDED_ASK, phrase
from headwise_lab.microworld.relations import Template, relations, template
from headwise_lab.microworld.texts import Example, Exchange, with_turn
from headwise_lab.microworld.world import World, known_facts, make_world

ERRORS = ("fabricated", "mis_combined")
Said = tuple[Fact, Template]


def make(
    rng: np.random.Generator,
    split: str,
    entities: int = 4,
    known: int | None = None,
    asked: int | None = None,
    documents: int = 3,
    paraphrase: bool = False,
    which: str | None = None,
    world: World | None = None,
) -> Example:
    """Two facts about each of several people, dealt out to passages, and what is said about one or two of the people.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        entities: People, from 1 to 40.
        known: How many of them are people of the world (None: two); one fact of each contradicts the world.
        asked: 1 or 2 people (drawn if None), so the answer has two or four sentences, in the order of the documents.
        documents: Passages.
        paraphrase: Say the facts in other wordings than the documents do.
        which: As for `closed_book.make`.
        world: As for `closed_book.make`.

    Returns:
        An example whose info has facts, gold (numbers of the facts), asked (names), prior (what the world says instead, per
        contradicted fact), claims (text, label) and answer. Spans of the answer: claim/1, claim/1/entity, ...

    Raises:
        HeadwiseError: Options out of range, or no false value is left.
    """
    count("entities", entities, 1, 40)
    known = count("known", min(2, entities) if known is None else known, 0, entities)
    asked = count("asked", min(entities, 1 + int(rng.random() < 0.5)) if asked is None else asked, 1, min(2, entities))
    world = world or make_world()
    scene = Scene(rng, split)
    scene.reserve(*world.people)
    told, prior = _facts(scene, entities, known, known_facts(split, which, world), world)
    page = Page(scene)
    _write(page, told, count("documents", documents, 1, 2 * entities))
    people = list(dict.fromkeys(fact.entity for fact in told))
    names = [people[i] for i in rng.permutation(len(people))[:asked]]
    gold = tuple(n for n, fact in enumerate(page.facts, 1) if fact.entity in names)
    said = [(page.facts[n - 1], _reworded(page, n, paraphrase)) for n in gold]
    asks = template(phrase(rng, GROUNDED_ASK, split))
    alias = {f"gold/{i}": f"fact/{n}" for i, n in enumerate(gold, 1)}
    turn = Exchange(question_pieces(asks, " and ".join(names)), _answer(said), alias=alias)
    claims = tuple((wording.fill(fact.entity, fact.value), "supported") for fact, wording in said)
    return page.example("grounded", [turn], gold=gold, asked=tuple(names), prior=tuple(prior), claims=claims, said=_plain(said))


def corrupted(example: Example, rng: np.random.Generator, error: str | None = None, claims: int = 1) -> Example:
    """The same documents and question with a partly wrong answer, which is not to be learned (scored=False).

    Args:
        example: As `make` gives it.
        rng: Source of chance.
        error: `fabricated` (what the world says, or a value from nowhere) or `mis_combined` (another value of the documents);
            drawn for each sentence if None.
        claims: How many sentences are wrong, from 1 to all.

    Returns:
        A new example; info names the label of every claim.

    Raises:
        HeadwiseError: An unknown error, or more claims than there are.
    """
    said: list[Said] = [(fact, template(text)) for fact, text in example.info["said"]]
    labels = ["supported"] * len(said)
    order = rng.permutation(len(said)).tolist()
    if error == "mis_combined":  # first those that can be mixed up
        order.sort(key=lambda i: not _alike(example, said[i][0]))
    for i in order[: count("claims", claims, 1, len(said))]:
        kind = choice("error", pick(rng, ERRORS) if error is None else error, ERRORS)
        value, labels[i] = _wrong_value(example, rng, said[i][0], kind)
        said[i] = (said[i][0]._replace(value=value), said[i][1])
    changed = with_turn(example, -1, answer=_answer(said), scored=False)
    texts = [wording.fill(fact.entity, fact.value) for fact, wording in said]
    info = {**example.info, "said": _plain(said), "claims": tuple(zip(texts, labels, strict=True))}
    return Example(example.task, example.split, changed.context, changed.turns, {**info, "answer": changed.turns[-1].answer_text})


def _facts(scene: Scene, entities: int, known: int, facts: Sequence[Fact], world: World) -> tuple[list[Fact], list[Fact]]:
    """Two facts per person, and the world's facts that they contradict."""
    chosen = {facts[i].entity: facts[i] for i in scene.rng.permutation(len(facts))[: 3 * known]}
    prior = list(chosen.values())[:known]
    scene.reserve(*(fact.value for true in prior for fact in world.of(true.entity)))
    told: list[Fact] = []
    for i in range(entities):
        entity = prior[i].entity if i < known else scene.name("person")
        own = [other_value(scene, prior[i], "split", world)] if i < known else []
        taboo = {fact.relation for fact in world.of(entity)}
        while len(own) < 2:
            # Every second fact shares its relation with another person, so that values can be mixed up.
            echo = scene.fact(relations()[pick(scene.rng, told).relation], entity) if told and scene.rng.random() < 0.5 else None
            fact = echo or scene.any_fact(entity, "person")
            if fact and fact.relation not in taboo:
                own.append(fact)
        told += own
    return told, prior


def _write(page: Page, told: Sequence[Fact], documents: int) -> None:
    order = [told[i] for i in page.rng.permutation(len(told))]
    for number, block in enumerate(np.array_split(np.arange(len(order)), documents), 1):
        header(page, number)
        for i in block:
            page.fact(order[i], f"passage/{number}")


def _reworded(page: Page, number: int, paraphrase: bool) -> Template:
    told = page.wordings[number - 1]
    others = [w for w in relations()[page.facts[number - 1].relation].statements[page.split] if w != told]
    return pick(page.rng, others) if paraphrase else told


def _plain(said: Sequence[Said]) -> tuple[tuple[Fact, str], ...]:
    return tuple((fact, wording.text) for fact, wording in said)


def _answer(said: Sequence[Said]) -> tuple[Piece, ...]:
    """All sentences, without the last full stop (it closes the turn)."""
    pieces = [p for i, (fact, wording) in enumerate(said, 1) for p in wording.render(fact.entity, fact.value, f"claim/{i}")]
    return tuple(pieces[:-1])


def _wrong_value(example: Example, rng: np.random.Generator, fact: Fact, kind: str) -> tuple[str, str]:
    alike = _alike(example, fact)
    if kind == "mis_combined" and alike:
        return pick(rng, alike), kind
    prior = [f.value for f in example.info["prior"] if f[:2] == fact[:2]]
    if prior:
        return prior[0], "fabricated"
    scene = Scene(rng, example.split)
    scene.reserve(*(f.value for f in example.info["facts"]))
    return scene.new(relations()[fact.relation].value) or "nothing", "fabricated"


def _alike(example: Example, fact: Fact) -> list[str]:
    """Other values of the documents that are of the same kind."""
    kind = relations()[fact.relation].value
    return [f.value for f in example.info["facts"] if f.value != fact.value and relations()[f.relation].value == kind]
