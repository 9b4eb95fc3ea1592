"""Made-up values for prompts, in splits that share nothing: what is chosen on one split is tested on another."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import cache
from importlib import resources

import numpy as np

from headwise.heads.errors import HeadwiseError

SPLITS = ("train", "selection", "test")
# Upper ends of the hash buckets of 100 that belong to a part; `world` is kept for texts that a lab model learns by heart.
_SHARES = {"train": 66, "selection": 78, "test": 94, "world": 100}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SYLLABLES = (
    [
        "Bra",
        "Vos",
        "Kel",
        "Tor",
        "Mir",
        "Dal",
        "Fen",
        "Gru",
        "Hol",
        "Jas",
        "Lor",
        "Nev",
        "Pel",
        "Quin",
        "Rad",
        "Sti",
        "Tul",
        "Ulm",
        "Wex",
        "Zan",
    ],
    ["ko", "ti", "la", "mo", "du", "ne", "ri", "sha", "ve", "po"],
    ["nty", "lle", "ska", "rov", "mund", "dine", "berg", "quist", "fax", "thorp"],
)


def check_split(split: str) -> str:
    """The split itself.

    Raises:
        HeadwiseError: it is none of train, selection and test.
    """
    if split not in SPLITS:
        raise HeadwiseError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    return split


def part_of(text: str) -> str:
    """The part (train, selection, test, world) that a made-up name, number or key belongs to, decided by its hash alone."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 100
    return next(part for part, end in _SHARES.items() if bucket < end)


@cache
def secret_words(split: str) -> tuple[str, ...]:
    """Ordinary words that pass-keys of a split are made of; splits share none.

    Raises:
        HeadwiseError: as `check_split`.
    """
    text = resources.files("headwise.prompts").joinpath("data/secret-words.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {split: tuple(words) for split, *words in rows}[check_split(split)]


def random_key(rng: np.random.Generator, split: str, length: int) -> str:
    """A random key of small letters and digits that belongs to a split.

    It starts and ends with a letter: tokenizers that set digits apart then keep the quotation marks around it apart as well.

    Args:
        rng: source of chance.
        split: train, selection or test.
        length: number of characters, at least 1.

    Returns:
        A key whose part (see `part_of`) is the split.
    """
    while True:
        places = (rng.random(length) * len(_LETTERS)).astype(int)
        places[0], places[-1] = places[0] % 26, places[-1] % 26
        made = "".join(_LETTERS[i] for i in places)
        if part_of(made) == split:
            return made


def made_up_name(rng: np.random.Generator, split: str, taken: Collection[str] = ()) -> str:
    """A made-up family name, such as `Kelmoberg`, that belongs to a split (there are 2,000 in all).

    Args:
        rng: source of chance.
        split: train, selection or test.
        taken: names that it must not be.
    """
    while True:
        made = "".join(part[int(rng.integers(len(part)))] for part in _SYLLABLES)
        if made not in taken and part_of(made) == split:
            return made
