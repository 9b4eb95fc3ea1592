"""Pools of names and words, cut into parts that share nothing: train, selection, test, and world for the fixed world."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TypeVar

import numpy as np

from headwise.prompts.words import SPLITS, part_of, secret_words

PARTS = (*SPLITS, "world")

_PERSON = (
    "Bal Ber Cor Dal Del Dor Fal Fen Gar Gil Hal Hel Jar Jo Kel Kor La Lor Mal Mi Nar No Os Pel Ra Ros Sel Ta Tor Ul Val Wen Yo Zan",
    "- la ri no de mi ta ve lo su ka be",
    "ra lin do sha mar nel vi tas gan wyn ro bek zia jen pol dis kya mon fra quin",
)
_PLACE = (
    "Ash Bar Black Bram Cal Car Clay Crow Dun East Elm Far Fern Fox Glen Green Hart Haw High Iron Kings Lang Lind Long Marsh Mill"
    " North Oak Old Pen Red Rush Salt Sand Silver Stan Thorn Tarn West White Win Wolf",
    "- er en ing",
    "wick ford holm stead mere by thorpe dale burgh ness haven moor combe ley mouth ton ham stow worth minster",
)
_SHIP = (
    "Aqu Bor Cal Cyr Dem Ec Fl Gal Hes Il Kal Lum Mer Nym Or Pel Qu Ser Thal Ur Vesp Xan",
    "- an el ir ov",
    "axia ondra ium ephra oria ulon yssa antia eron ystra",
)
_CODE = (
    "bla bro cli cra dri dro fle fro gla gri klo kru pla ple pri sko sla sni spe sto tra twi vlo zwe",
    "- bo di fe ga",
    "bix dop fen gul jat kem lov mip nux pob rud sil tov vem wug zat",
)
_SYLLABLES = {"person": _PERSON, "place": _PLACE, "ship": _SHIP, "code": _CODE}
# Parts of words that look English and are none, so that copying meets every way in which a tokenizer may cut a new word.
_ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st str sw t th tr tw v w wh"
_VOWELS = "a ai au e ea ee i o oa oo ou u"
_CODAS = "b ck d dge ff g l ll lt m mp n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch th tt x"
_ENDS = "- - er et le ow y in age ish s on"
Item = TypeVar("Item")


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, uniformly; much cheaper than `rng.choice`."""
    return items[int(rng.random() * len(items))]


@cache
def names(kind: str, part: str) -> tuple[str, ...]:
    """All names of one part, sorted.

    Args:
        kind: person, place, ship or code.
        part: One of `PARTS`.
    """
    first, middle, last = (row.split() for row in _SYLLABLES[kind])
    made = {a + b.replace("-", "") + c for a in first for b in middle for c in last}
    return tuple(sorted(name for name in made if part_of(name) == part))


@cache
def numbers(part: str) -> tuple[str, ...]:
    """Numbers from 100 to 9999 of one part."""
    return tuple(str(n) for n in range(100, 10_000) if part_of(str(n)) == part)


@cache
def words(kind: str, part: str) -> tuple[str, ...]:
    """Ordinary words of one part.

    Args:
        kind: animal, trade, instrument, food, colour, material, container or pass.
        part: One of `PARTS`; the world uses the words of train.
    """
    part = "train" if part == "world" else part
    return secret_words(part) if kind == "pass" else _lists()[kind, part]


@cache
def _lists() -> dict[tuple[str, str], tuple[str, ...]]:
    text = resources.files(__package__).joinpath("words.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {(kind, part): tuple(found) for kind, part, *found in rows}


@cache
def pool(kind: str, part: str) -> tuple[str, ...]:
    """Every value of a kind in one part.

    Args:
        kind: As for `names` and `words`, or `number`, or `spot` (a material and a container: "copper jar").
        part: One of `PARTS`.
    """
    if kind in _SYLLABLES:
        return names(kind, part)
    if kind == "number":
        return numbers(part)
    if kind == "spot":
        return tuple(f"{a} {b}" for a in words("material", part) for b in words("container", part))
    return words(kind, part)


def odd_word(rng: np.random.Generator) -> str:
    """A word of one to three syllables that is in no list."""
    onsets, vowels, codas, ends = (row.split() for row in (_ONSETS, _VOWELS, _CODAS, _ENDS))
    while True:
        made = "".join(pick(rng, part) for part in (onsets, vowels, codas) * (1 + (rng.random() < 0.3)))
        made += pick(rng, ends).replace("-", "")
        if made not in _listed():
            return made


@cache
def _listed() -> frozenset[str]:
    return frozenset(word for words in _lists().values() for word in words) | {
        word for part in SPLITS for word in secret_words(part)
    }
