"""Key-value tables: a JSON object, demonstrations, a key to look up (the proxy task of AttentionInfluence, section 3.1 of our card)."""

from __future__ import annotations

import numpy as np

from headwise.prompts.prompt import Piece
from headwise.prompts.words import random_key
from headwise_lab.microworld.facts import Page, Scene
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import count
from headwise_lab.microworld.phrases import TABLE_ASK, TABLE_INTRO, phrase
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example, Exchange


def make(rng: np.random.Generator, split: str, k: int = 8, key_length: int = 8, shots: int = 3) -> Example:
    """A table of pairs; turns that demonstrate, then the turn that is asked, all about different pairs.

    The answer opens with a quotation mark that is part of the prompt, so that a value has the same ids in table and answer.

    Args:
        rng: Source of chance.
        split: Whose keys, wordings and words are used.
        k: Pairs, from shots + 1 to 400.
        key_length: Characters of a key, from 4 to 64.
        shots: Turns in front of the one that is asked, from 0 to 20.

    Returns:
        An example whose info has pairs [(key, value)], gold (number of the last turn's pair, from 1) and answer. Spans: pair/i,
        pair/i/key, pair/i/value.

    Raises:
        HeadwiseError: Options out of range.
    """
    count("shots", shots, 0, 20)
    count("k", k, shots + 1, 400)
    count("key_length", key_length, 4, 64)
    scene = Scene(rng, split)
    page = Page(scene)
    page.text(phrase(rng, TABLE_INTRO, split) + "\n{")
    pairs = table(page, scene, k, key_length)
    page.text("\n}")
    asked = [int(i) + 1 for i in rng.permutation(k)[: shots + 1]]
    turns = [_turn(page, pairs, number) for number in asked]
    return page.example("key_value", turns, pairs=tuple(pairs), gold=(asked[-1],))


def table(page: Page, scene: Scene, k: int, key_length: int = 8) -> list[tuple[str, str]]:
    """Write lines of a JSON object.

    Args:
        page: Where they are written.
        scene: Draws the values.
        k: How many.
        key_length: Characters of a key.

    Returns:
        (key, value) of each line.
    """
    pairs: list[tuple[str, str]] = []
    for number in range(1, k + 1):
        key = random_key(page.rng, page.split, key_length)
        value = value_sentence(scene)
        name = f"pair/{number}"
        page.add(
            [
                Piece('\n"'),
                Piece(key, (name, f"{name}/key")),
                Piece('": "', (name,)),
                Piece(value, (name, f"{name}/value")),
                Piece('",' if number < k else '"'),
            ]
        )
        pairs.append((key, value))
    return pairs


def value_sentence(scene: Scene) -> str:
    """A short sentence without its full stop."""
    fact = scene.other()
    wording = pick(scene.rng, relations()[fact.relation].statements[scene.split])
    return wording.fill(fact.entity, fact.value).removesuffix(".")


def _turn(page: Page, pairs: list[tuple[str, str]], number: int) -> Exchange:
    key, value = pairs[number - 1]
    before, after = phrase(page.rng, TABLE_ASK, page.split).split("{e}")
    ask = (Piece(" " + before), Piece(key, ("question/entity",)), Piece(after))
    name = f"pair/{number}"
    alias = {"needle": name, "key": f"{name}/key", "value": f"{name}/value", "answer": f"{name}/value"}
    return Exchange(ask, (Piece(value),), lead=(Piece(' "'),), close='".', alias=alias)
