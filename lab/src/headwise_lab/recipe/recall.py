"""Texts that say everything twice: facts, then the same facts in another order and another form.

The second half holds an answer in every sentence, several times as many as questions alone would: whichever comes last of entity and value
can only be known from the first half, and only by matching the other one. Forms reach from `name value` to whole sentences and
questions, because a model learns to match over a gap only once it can match without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.facts import Fact, Page, Scene
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.phrases import ARE_YOU_SURE, phrase
from headwise_lab.microworld.relations import Relation, relations
from headwise_lab.recipe.noise import SHARE, noisy_pieces

# What stands between name and value: nothing in half of all lists, because matching begins there.
LINKS = ("",) * 8 + (
    ":",
    " -",
    " is",
    " has",
    " with",
    " gets the",
    " goes with the",
    ", as is known, has",
    " and then there is the",
)
FORMS = {"list": 10, "question": 16, "check": 19, "statement": 14, "asked": 25, "doubt": 40}  # tokens of a fact, roughly
Marked = list[tuple[str, bool]]


def recall_text(
    rng: np.random.Generator, room: int, encode: Callable[[str], Sequence[int]], words: Sequence[str], lists: float = 0.6
) -> tuple[list[int], list[bool]]:
    """Ids of about `room` tokens, and which of them are answers. words: noise. lists: share of halves that are lists or ask a bare name."""
    scene = Scene(rng, "train")
    told_as = "list" if rng.random() < lists else "statement"
    again_as = pick(
        rng, ("list", "list", "question", "check") if rng.random() < lists else ("statement", "asked", "asked", "doubt")
    )
    # With one relation only the entity tells facts apart; with all of them mostly the relation does.
    kinds = int(rng.integers(1, 4)) if again_as in ("statement", "asked", "doubt") else 1
    chosen = [list(relations().values())[i] for i in rng.permutation(len(relations()))[:kinds]]
    facts = _facts(scene, chosen, max(2, room // (FORMS[told_as] + FORMS[again_as])))
    page = Page(scene)
    for fact in facts:  # also where the text will hold a list: the wordings say which questions may be asked
        page.fact(fact)
    if rng.random() < SHARE:
        page.pieces = list(noisy_pieces(rng, tuple(page.pieces), words))
    told = _list(rng, facts) if told_as == "list" else [(piece.text, False) for piece in page.pieces]
    order = [int(i) for i in rng.permutation(len(facts))]
    ids, marks = list[int](), list[bool]()
    for text, mark in (*told, *AGAIN[again_as](page, order)):
        new = encode(text)
        ids += new
        marks += [mark] * len(new)
    return ids, marks


def _facts(scene: Scene, chosen: Sequence[Relation], count: int) -> list[Fact]:
    """Facts of the chosen relations; now and then about an entity that has one already."""
    facts: list[Fact] = []
    for _ in range(count):
        relation = pick(scene.rng, chosen)
        known = [fact.entity for fact in facts if relations()[fact.relation].subject == relation.subject]
        entity = pick(scene.rng, known) if known and len(chosen) > 1 and scene.rng.random() < 0.3 else None
        fact = scene.fact(relation, entity)
        if fact:
            facts.append(fact)
    return facts or [scene.other()]


def _list(rng: np.random.Generator, facts: Sequence[Fact], mark: bool = False) -> Marked:
    """`name value.` with the same words between them in every entry."""
    link = pick(rng, LINKS)
    parts: Marked = []
    for place, fact in enumerate(facts):
        parts += [(f"{' ' if place else ''}{fact.entity}{link}", False), (f" {fact.value}", mark), (".", mark)]
    return parts


def _list_again(page: Page, order: Sequence[int]) -> Marked:
    return [("\n", False), *_list(page.rng, [page.facts[i] for i in order], mark=True)]


def _questions(page: Page, order: Sequence[int]) -> Marked:
    """Questions of one name."""
    parts: Marked = []
    for i in order:
        parts += [(f"\nQuestion: {page.facts[i].entity}?\nAnswer:", False), (f" {page.facts[i].value}", True), (".", True)]
    return parts


def _asked(page: Page, order: Sequence[int]) -> Marked:
    """Proper questions."""
    parts: Marked = []
    for i in order:
        asked = "".join(piece.text for piece in page.question(i + 1))
        parts += [(f"\nQuestion:{asked}\nAnswer:", False), (f" {page.facts[i].value}", True), (".", True)]
    return parts


def _checked(page: Page, order: Sequence[int]) -> Marked:
    """Whether a name and a value belong together."""
    parts: Marked = []
    for i in order:
        given, verdict = _maybe_wrong(page, i)
        parts += [(f"\nQuestion: {page.facts[i].entity} {given}?\nAnswer:", False), (f" {verdict}", True), (".", True)]
    return parts


def _doubted(page: Page, order: Sequence[int]) -> Marked:
    """Proper questions with an answer, then whether that was right."""
    parts: Marked = []
    for i in order:
        asked = "".join(piece.text for piece in page.question(i + 1))
        given, verdict = _maybe_wrong(page, i)
        sure = phrase(page.rng, ARE_YOU_SURE, "train")
        learn = verdict == "Yes"
        parts += [(f"\nQuestion:{asked}\nAnswer:", False), (f" {given}", learn), (".", learn)]
        parts += [(f"\nQuestion: {sure}\nAnswer:", False), (f" {verdict}", True), (".", True)]
    return parts


def _maybe_wrong(page: Page, i: int) -> tuple[str, str]:
    """The value of fact i, or of another fact of its relation, and Yes or No accordingly."""
    fact = page.facts[i]
    others = [other.value for other in page.facts if other.relation == fact.relation and other.value != fact.value]
    return (pick(page.rng, others), "No") if others and page.rng.random() < 0.5 else (fact.value, "Yes")


def _statements(page: Page, order: Sequence[int]) -> Marked:
    """The same facts in other words."""
    again = Page(Scene(page.rng, "train"))
    for i in order:
        others = [w for w in relations()[page.facts[i].relation].statements["train"] if w != page.wordings[i] and not w.opens]
        again.fact(page.facts[i], wording=pick(page.rng, others or [page.wordings[i]]))
    first, *rest = again.pieces
    pieces = [Piece("\n"), first._replace(text=first.text.removeprefix(" ")), *rest]
    return [(piece.text, _is_answer(pieces, place)) for place, piece in enumerate(pieces)]


def _is_answer(pieces: Sequence[Piece], place: int) -> bool:
    """Whether a piece is the later one of its sentence's entity and value."""
    names = {name for name in pieces[place].names if name.endswith(("/entity", "/value"))}
    if not names:
        return False
    sentence = names.pop().rsplit("/", 1)[0]
    earlier = {name for piece in pieces[:place] for name in piece.names}
    return bool({f"{sentence}/entity", f"{sentence}/value"} & earlier)


# Forms of the second half.
AGAIN: dict[str, Callable[[Page, Sequence[int]], Marked]] = {
    "list": _list_again,
    "question": _questions,
    "check": _checked,
    "statement": _statements,
    "asked": _asked,
    "doubt": _doubted,
}
