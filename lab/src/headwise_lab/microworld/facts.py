"""Facts of one example: drawn so that every question has one answer, told in the wordings of a split, and asked about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from headwise.prompts.prompt import Piece
from headwise.prompts.words import check_split
from headwise_lab.microworld.names import odd_word, pick, pool
from headwise_lab.microworld.phrases import filler_sentence
from headwise_lab.microworld.relations import CLOSED, Relation, Template, about, relations, template
from headwise_lab.microworld.texts import Example, Exchange, Pieces

_SUBJECTS = ("person",) * 8 + ("place", "ship")
STRANGE = 0.4  # share of made-up words where training would have a trade, animal, instrument, food, colour or hiding place
_TWO_WORDS = 0.3  # share of code words that are two words


class Fact(NamedTuple):
    """What is said about something.

    Attributes:
        entity: Its name.
        relation: Name of a `Relation`.
        value: What is said.
    """

    entity: str
    relation: str
    value: str


@cache
def _others(kind: str, relation: str) -> tuple[Relation, ...]:
    """Relations of all kinds of subject but one relation, drawn as often as the whole."""
    return tuple(r for subject in ([kind] if kind else _SUBJECTS) for r in about(subject) if r.name != relation)


class Scene:
    """Draws facts in which no name and no value comes twice, so that nothing is ambiguous."""

    def __init__(self, rng: np.random.Generator, split: str) -> None:
        self.rng, self.split = rng, check_split(split)
        self.used: set[str] = set()
        self._told: set[tuple[str, str]] = set()

    def new(self, kind: str) -> str | None:
        """A name, number or word of a kind that this scene has not used; None if all are used."""
        # Words of short lists would be learnt by heart in training, and the new ones of a test never be copied.
        if self.split == "train" and (kind in CLOSED or kind == "spot") and self.rng.random() < STRANGE:
            return self._strange(kind)
        made = self._draw(kind)
        if made is not None and kind == "code" and self.rng.random() < _TWO_WORDS:
            made += f" {self._draw(kind)}"
        return made

    def _strange(self, kind: str) -> str:
        """A made-up word instead of one of a short list; a hiding place has up to two of them."""
        if kind != "spot" and self.rng.random() < 0.5 and (code := self._draw("code")):
            return code
        made = odd_word(self.rng)
        if kind == "spot":
            material, container = pick(self.rng, pool("spot", self.split)).split()
            draw = self.rng.random()
            made = f"{made} {container}" if draw < 0.3 else f"{material} {made}" if draw < 0.6 else f"{made} {odd_word(self.rng)}"
        if made in self.used:
            return self._strange(kind)
        self.used.add(made)
        return made

    def _draw(self, kind: str) -> str | None:
        items = pool(kind, self.split)
        made = pick(self.rng, items)
        if made in self.used:
            left = [item for item in items if item not in self.used]
            if not left:
                return None
            made = pick(self.rng, left)
        self.used.add(made)
        return made

    def name(self, kind: str) -> str:
        """Like `new`, of a kind with names enough.

        Raises:
            RuntimeError: All are used.
        """
        made = self.new(kind)
        if made is None:
            raise RuntimeError(f"the pool of kind {kind} is used up")
        return made

    def reserve(self, *texts: str) -> None:
        """Never draw these."""
        self.used.update(texts)

    def fact(self, relation: Relation, entity: str | None = None) -> Fact | None:
        """A new fact.

        Args:
            relation: Its relation.
            entity: What it is about; None: something new.

        Returns:
            The fact; None if it was told already or no value or name is left.
        """
        if entity is not None and (entity, relation.name) in self._told:
            return None
        value = self.new(relation.value)
        entity = entity or self.new(relation.subject)
        if value is None or entity is None:
            return None
        fact = Fact(entity, relation.name, value)
        self._told.add(fact[:2])
        return fact

    def tells(self, entity: str, relation: str) -> bool:
        """Whether the scene has a fact about this already."""
        return (entity, relation) in self._told

    def values_left(self, relation: str) -> int:
        """How many values of a relation this scene could still draw; of long pools their size."""
        items = pool(relations()[relation].value, self.split)
        return len(items) if len(items) > 100 else sum(item not in self.used for item in items)

    def accept(self, fact: Fact) -> Fact:
        """Take a fact that was made elsewhere."""
        self.reserve(fact.entity, fact.value)
        self._told.add(fact[:2])
        return fact

    def any_fact(self, entity: str | None = None, kind: str = "", but: str = "") -> Fact | None:
        """A fact of any relation but one.

        Args:
            entity: What it is about; None: something new.
            kind: Kind of the entity, if one is given.
            but: Name of the relation to leave out.

        Returns:
            The fact; None if several tries found none that is left.
        """
        open_to = _others(kind, but)
        for _ in range(12 if open_to else 0):
            fact = self.fact(pick(self.rng, open_to), entity)
            if fact:
                return fact
        return None

    def distractor(self, target: Fact, hard: float) -> Fact:
        """A fact that may be taken for the target.

        Args:
            target: The fact that is asked for.
            hard: Probability in [0, 1] of the same entity in another relation, or the same relation of another entity.
        """
        relation = relations()[target.relation]
        draw = self.rng.random()
        fact = None
        if draw < hard / 2:
            fact = self.any_fact(target.entity, relation.subject, but=target.relation)
        elif draw < hard:
            fact = self.fact(relation)
        return fact or self.other()

    def other(self, but: str = "") -> Fact:
        """A fact about somebody or something new, in any relation except `but`."""
        return self.any_fact(but=but) or self._number()

    def _number(self) -> Fact:
        fact = self.fact(relations()["number"])
        if fact is None:
            raise RuntimeError("the pool of numbers is used up")
        return fact


class Page:
    """A context that grows sentence by sentence; facts are numbered from 1 in the order they are told."""

    def __init__(self, scene: Scene) -> None:
        self.rng, self.split = scene.rng, scene.split
        self.pieces: list[Piece] = []
        self.facts: list[Fact] = []
        self.wordings: list[Template] = []

    def add(self, pieces: Sequence[Piece], outer: tuple[str, ...] = ()) -> None:
        """Append pieces. At the start of a line the leading space is dropped.

        Args:
            pieces: From first to last.
            outer: Further names of all of them.
        """
        start = len(self.pieces)
        if outer:
            pieces = [Piece(piece.text, (*outer, *piece.names)) for piece in pieces]
        self.pieces += pieces
        if start and self.pieces[start - 1].text.endswith("\n"):
            first = self.pieces[start]
            self.pieces[start] = Piece(first.text.removeprefix(" "), first.names)

    def text(self, text: str, *names: str) -> None:
        """Append one piece."""
        self.add([Piece(text, names)])

    def fact(self, fact: Fact, *outer: str, wording: Template | None = None) -> int:
        """Tell a fact; its spans are fact/i, fact/i/entity, fact/i/value.

        A value never opens a line: without a space in front of it, its ids would not be those of an answer.

        Args:
            fact: The fact.
            *outer: Further names of the whole sentence.
            wording: How to say it; None: any of the split's.

        Returns:
            Its number i, from 1.
        """
        opens = not self.pieces or self.pieces[-1].text.endswith("\n")
        if wording is None:
            usable = relations()[fact.relation].statements[self.split]
            wording = pick(self.rng, [w for w in usable if not w.opens] if opens else usable)
        elif opens and wording.opens:
            self.add([Piece(" " + filler_sentence(self.rng, self.split), ("filler",))], outer)
        self.facts.append(fact)
        self.wordings.append(wording)
        number = len(self.facts)
        self.add(wording.render(fact.entity, fact.value, f"fact/{number}"), outer)
        return number

    def question(self, number: int) -> Pieces:
        """A question about fact `number` in other words than it was told in."""
        fact, told = self.facts[number - 1], self.wordings[number - 1]
        asked = pick(self.rng, relations()[fact.relation].askable(self.split, told))
        return question_pieces(asked, fact.entity)

    def turn(self, number: int) -> Exchange:
        """A question about fact `number` and its answer."""
        return Exchange(self.question(number), (Piece(" " + self.facts[number - 1].value),), alias=fact_alias(number))

    def turns(self, amount: int, but: int) -> list[Exchange]:
        """Questions about different facts.

        Args:
            amount: How many; fewer if there are not more facts.
            but: Number of a fact that none of them is about.
        """
        others = [int(i) + 1 for i in self.rng.permutation(len(self.facts)) if i + 1 != but] if amount else []
        return [self.turn(number) for number in others[:amount]]

    def example(self, task: str, turns: Sequence[Exchange], **info: Any) -> Example:
        """The finished example.

        Args:
            task: Its name.
            turns: Questions and answers, from first to last; may be empty.
            **info: What else is known; `facts`, `wordings` and, with a question, `answer` (of the last one) are added.
        """
        truth = {"facts": tuple(self.facts), "wordings": tuple(w.text for w in self.wordings), **info}
        if turns:
            truth.setdefault("answer", turns[-1].answer_text)
        return Example(task, self.split, tuple(self.pieces), tuple(turns), truth)


def fact_alias(number: int) -> dict[str, str]:
    """What a question about fact `number` calls its spans."""
    return {"needle": f"fact/{number}", "answer": f"fact/{number}/value", "key": f"fact/{number}/entity"}


def question_pieces(asked: Template, entity: str) -> Pieces:
    """A question; its entity carries the name question/entity.

    Args:
        asked: The wording.
        entity: Whom it is about.
    """
    pieces = zip(asked.render(entity), asked.parts, strict=True)
    return tuple(Piece(piece.text, ("question/entity",)) if slot == "e" else piece for piece, (slot, _) in pieces)


@cache
def nested(question: Template, phrase: Template) -> Template:
    """A question about what a phrase describes: "Where does the friend of {e} live?".

    Args:
        question: Where {e} is replaced.
        phrase: What stands there instead; its own {e} stays.
    """
    text = question.text.replace("the {e}", "{e}").replace("{e}", phrase.text)
    return template(text)


def lay_out(page: Page, facts: Sequence[Fact], filler: Sequence[str], at: tuple[int, float] | None = None) -> dict[Fact, int]:
    """Tell facts among filler sentences, all in random order.

    Args:
        page: Where they are told.
        facts: The facts.
        filler: The sentences.
        at: (index of a fact, depth in [0, 1]) to fix; None: all are anywhere.

    Returns:
        Fact -> its number on the page.
    """
    slots: list[Fact | str] = [*facts, *filler]
    order = [slots[i] for i in page.rng.permutation(len(slots))]
    if at is not None:
        fixed = facts[at[0]]
        order.remove(fixed)
        order.insert(round(at[1] * len(order)), fixed)
    numbers = {}
    for item in order:
        if isinstance(item, Fact):
            numbers[item] = page.fact(item)
        else:
            page.text(" " + item, "filler")
    return numbers


def filler_for(scene: Scene, words: int, source: Any = None) -> list[str]:
    """Filler sentences.

    Args:
        scene: Its chance and split decide them.
        words: About how many; below 1 there are none.
        source: A function (rng, words) -> sentences; None: our own landscape.
    """
    if words < 1:
        return []
    if source is not None:
        return [" ".join(sentence.split()) for sentence in source(scene.rng, words) if sentence.strip()]
    return [filler_sentence(scene.rng, scene.split) for _ in range(max(1, round(words / 9)))]
