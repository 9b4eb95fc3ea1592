"""Unlabelled documents for data selection: with and without late references to early facts, tables, duplicates, boilerplate."""

from __future__ import annotations

import numpy as np

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.facts import Fact, Page, Scene
from headwise_lab.microworld.key_value import table
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import choice, count
from headwise_lab.microworld.phrases import BOILERPLATE, LATE_LEAD, TABLE_LINE, filler_sentence, phrase
from headwise_lab.microworld.relations import relations, template
from headwise_lab.microworld.texts import Example, words_in

KINDS = ("late_reference", "no_reference", "key_value", "duplicate", "boilerplate")


def make(rng: np.random.Generator, split: str, kind: str | None = None, words: int = 200) -> Example:
    """A document without questions.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        kind: `late_reference` (facts, filler, then the facts again in other words), `no_reference` (the same, but the late facts
            are new), `key_value` (a table, then values looked up), `duplicate` (a paragraph again and again) or `boilerplate` (a
            few stock sentences); drawn if None.
        words: About how many, from 40 to 20,000.

    Returns:
        An example whose info has kind, facts and pairs: (early fact or table line, what repeats it: late fact or looked-up
        value), counted from 1. Spans: late/i for the last third and for looked-up values, repeat/i for every copy of a duplicated
        paragraph.

    Raises:
        HeadwiseError: An unknown kind, or words out of range.
    """
    kind = choice("kind of document", pick(rng, KINDS) if kind is None else kind, KINDS)
    count("words", words, 40, 20_000)
    scene = Scene(rng, split)
    page = Page(scene)
    if kind in ("late_reference", "no_reference"):
        pairs = _references(page, scene, words, again=kind == "late_reference")
    elif kind == "key_value":
        pairs = _lookups(page, scene, words)
    else:
        pairs = []
        _repeats(page, scene, words, whole=kind == "duplicate")
    return page.example("documents", [], kind=kind, pairs=tuple(pairs))


def _references(page: Page, scene: Scene, words: int, again: bool) -> list[tuple[int, int]]:
    """A third facts, a third filler, a third facts behind a lead-in: the same ones or new ones."""
    early: list[Fact] = []
    while words_in(page.pieces) < words / 3:
        early.append(scene.other())
        page.fact(early[-1])
    while words_in(page.pieces) < 2 * words / 3:
        page.text(" " + filler_sentence(scene.rng, scene.split), "filler")
    pairs: list[tuple[int, int]] = []
    order = scene.rng.permutation(len(early))
    while words_in(page.pieces) < words:
        place = len(pairs)
        if place == len(order):
            break
        number = int(order[place]) + 1
        pairs.append((number, _retell(page, scene, early[number - 1] if again else scene.other(), number, place + 1)))
    return pairs if again else []


def _retell(page: Page, scene: Scene, fact: Fact, number: int, place: int) -> int:
    page.text(" " + phrase(scene.rng, LATE_LEAD, scene.split))
    told = page.wordings[number - 1]
    others = [w for w in relations()[fact.relation].statements[scene.split] if w != told]
    return page.fact(fact, f"late/{place}", wording=pick(scene.rng, others))


def _lookups(page: Page, scene: Scene, words: int) -> list[tuple[int, int]]:
    k = max(2, words // 16)
    page.text("{")
    pairs = table(page, scene, k)
    page.text("\n}\n")
    found: list[tuple[int, int]] = []
    order = scene.rng.permutation(k)
    while words_in(page.pieces) < words and len(found) < k:
        place = len(found)
        key, value = pairs[order[place]]
        line = template(phrase(scene.rng, TABLE_LINE, scene.split))
        page.add(line.render(key, value, f"late/{place + 1}"))
        found.append((int(order[place]) + 1, place + 1))
    return found


def _repeats(page: Page, scene: Scene, words: int, whole: bool) -> None:
    """One paragraph of facts over and over, or stock sentences in random order with a little of something else."""
    sentences: list[list[Piece]] = []
    for _ in range(5):
        fact = scene.other()
        sentences.append(pick(scene.rng, relations()[fact.relation].statements[scene.split]).render(fact.entity, fact.value))
    turn = 0
    while words_in(page.pieces) < words:
        if whole:
            place = turn // len(sentences)
            page.add(sentences[turn % len(sentences)], (f"repeat/{place}",) if place else ())
        else:
            page.text(" " + phrase(scene.rng, BOILERPLATE, scene.split))
            if turn % 6 == 5:
                page.fact(scene.other())
        turn += 1
