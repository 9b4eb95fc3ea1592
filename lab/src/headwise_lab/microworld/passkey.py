"""Pass-keys: several short strings hidden in filler, asked for one by one (the idea of DuoAttention's synthetic data)."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.prompt import Piece
from headwise.prompts.words import part_of
from headwise_lab.microworld.facts import Fact, Page, Scene, fact_alias, filler_for, question_pieces
from headwise_lab.microworld.names import pick, words
from headwise_lab.microworld.options import choice, count
from headwise_lab.microworld.phrases import ORDINALS, PASSKEY_ASK, PASSKEY_STATE
from headwise_lab.microworld.relations import meaning_words, template
from headwise_lab.microworld.texts import Example, Exchange

KINDS = ("words", "digits")
NAMED = ("ordinal", "name")


def make(
    rng: np.random.Generator,
    split: str,
    keys: int = 3,
    length: int = 4,
    asks: int = 1,
    by: str | None = None,
    kind: str | None = None,
    words: int = 120,
    filler: Any = None,
) -> Example:
    """Pass-keys in filler; some of them are asked for, in the order of the text.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        keys: Pass-keys in the text.
        length: Words or digits of each, from 3 to 64.
        asks: How many are asked for, from 1 to keys.
        by: What they are called by: `ordinal` (the second pass-key) or `name` (the pass-key of somebody); drawn if None.
        kind: `words` or `digits`; drawn if None.
        words: Of filler.
        filler: (rng, words) -> sentences to use instead of ours.

    Returns:
        An example whose info has facts (entity = what the pass-key is called), gold (of each turn) and answer.

    Raises:
        HeadwiseError: Options out of range.
    """
    by = choice("by", pick(rng, NAMED) if by is None else by, NAMED)
    kind = choice("kind", pick(rng, KINDS) if kind is None else kind, KINDS)
    count("keys", keys, 1, len(ORDINALS))
    count("asks", asks, 1, keys)
    count("length", length, 3, 64)
    scene = Scene(rng, split)
    page = Page(scene)
    facts = _facts(scene, keys, length, by, kind)
    slots = [False] * keys + [True] * len(text := filler_for(scene, words, filler))
    rest, left = iter(facts), iter(text)
    for i in rng.permutation(len(slots)):
        if slots[i]:
            page.text(" " + next(left), "filler")
        else:
            page.fact(next(rest), wording=template(pick(rng, PASSKEY_STATE[split])))
    gold = tuple(sorted(int(i) + 1 for i in rng.permutation(keys)[:asks]))
    return page.example("passkey", [_turn(page, number) for number in gold], gold=gold, by=by, kind=kind)


def _facts(scene: Scene, keys: int, length: int, by: str, kind: str) -> list[Fact]:
    called = [f"the {o} pass-key" if by == "ordinal" else f"the pass-key of {scene.name('person')}" for o in ORDINALS[:keys]]
    values: dict[str, None] = {}
    while len(values) < keys:
        values[_value(scene.rng, scene.split, length, kind)] = None
    return [Fact(entity, "passkey", value) for entity, value in zip(called, values, strict=True)]


def _value(rng: np.random.Generator, split: str, length: int, kind: str) -> str:
    """Words of the split's own list, or a string of digits whose hash belongs to the split."""
    if kind == "words":
        items = words("pass", split)
        return " ".join(pick(rng, items) for _ in range(length))
    while True:
        made = "".join(str(int(rng.random() * 10)) for _ in range(length))
        if part_of(made) == split:
            return made


def _turn(page: Page, number: int) -> Exchange:
    fact, told = page.facts[number - 1], page.wordings[number - 1]
    asked = [a for a in map(template, PASSKEY_ASK[page.split]) if not a.words & meaning_words(told.text)]
    return Exchange(question_pieces(pick(page.rng, asked), fact.entity), (Piece(" " + fact.value),), alias=fact_alias(number))
