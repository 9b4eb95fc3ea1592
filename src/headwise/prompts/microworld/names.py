"""Pools of names and words, cut into parts that share nothing: train, selection, test, and world for the fixed world."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TypeVar

import numpy as np

from headwise.core.errors import HeadwiseError

SPLITS = ("train", "selection", "test")
PARTS = (*SPLITS, "world")
# Upper ends of the hash buckets of 100 that belong to a part.
_SHARES = {"train": 66, "selection": 78, "test": 94, "world": 100}

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
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
Item = TypeVar("Item")


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, uniformly; much cheaper than `rng.choice`."""
    return items[int(rng.random() * len(items))]


def check_split(split: str) -> str:
    """The split itself; `HeadwiseError` unless it is train, selection or test."""
    if split not in SPLITS:
        raise HeadwiseError(f"unknown split {split!r} of the micro-world; choose one of {', '.join(SPLITS)}")
    return split


def part_of(text: str) -> str:
    """The part (train, selection, test, world) that a made-up name, number or key belongs to, decided by its hash alone."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 100
    return next(part for part, end in _SHARES.items() if bucket < end)


@cache
def names(kind: str, part: str) -> tuple[str, ...]:
    """All names of a kind (person, place, ship, code) in one part, sorted."""
    first, middle, last = (row.split() for row in _SYLLABLES[kind])
    made = {a + b.replace("-", "") + c for a in first for b in middle for c in last}
    return tuple(sorted(name for name in made if part_of(name) == part))


@cache
def numbers(part: str) -> tuple[str, ...]:
    """Numbers from 100 to 9999 of one part."""
    return tuple(str(n) for n in range(100, 10_000) if part_of(str(n)) == part)


@cache
def words(kind: str, part: str) -> tuple[str, ...]:
    """Ordinary words of a kind (animal, trade, instrument, food, colour, material, container, pass). The world uses those of train."""
    return _lists()[kind, "train" if part == "world" else part]


@cache
def _lists() -> dict[tuple[str, str], tuple[str, ...]]:
    text = resources.files(__package__).joinpath("words.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {(kind, part): tuple(found) for kind, part, *found in rows}


@cache
def pool(kind: str, part: str) -> tuple[str, ...]:
    """Every value of a kind in one part; `spot` is a material and a container ("copper jar")."""
    if kind in _SYLLABLES:
        return names(kind, part)
    if kind == "number":
        return numbers(part)
    if kind == "spot":
        return tuple(f"{a} {b}" for a in words("material", part) for b in words("container", part))
    return words(kind, part)


def random_key(rng: np.random.Generator, split: str, length: int) -> str:
    """A random key of small letters and digits that belongs to `split`.

    It starts and ends with a letter: tokenizers that set digits apart then keep the quotation marks around it apart as well.
    """
    while True:
        places = (rng.random(length) * len(_LETTERS)).astype(int)
        places[0], places[-1] = places[0] % 26, places[-1] % 26
        made = "".join(_LETTERS[i] for i in places)
        if part_of(made) == split:
            return made
