"""Training rows of the world models: texts of the micro-world packed one after another, and some of the rows of the first lab model.

Every text starts with its own BOS. Answers weigh 4; facts of the fixed world, which are to be learnt by heart, and documents weigh 1;
other contexts are noise by construction and weigh 0.25.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwise.core import HeadwiseError
from headwise.lab.recipe.facts import FactMaker
from headwise.lab.recipe.mixture import ANSWER_WEIGHT, Mixture, Row
from headwise.lab.recipe.recipes import Phase
from headwise.prompts.microworld import make_example, to_row, word_cache

CONTEXT_WEIGHT = 0.25
LEAST_ROOM = 32  # tokens; smaller gaps at the end of a row are filled with book text
ATTEMPTS = 6


@dataclass(frozen=True)
class Mix:
    """What rows consist of.

    books, needles: shares of rows of plain book text and of the first lab model's needle questions. repeats: of repeated sequences, at up
    to 128 tokens and at more. small: share of texts that are kept short, so that more answers fit. tasks: relative shares of texts
    (one that does not fit into the room left is drawn again).
    """

    books: float
    needles: float
    repeats: tuple[float, float]
    small: float
    tasks: Mapping[str, float]


# `even` came first; a model trained on it knew the facts of the world by heart but mixed up who and what in a text, so `dense` has more
# answers per token, and contexts in which the entity alone tells the fact beside those where it does not.
MIXES = {
    "even": Mix(
        books=0.10,
        needles=0.17,
        repeats=(0.22, 0.07),
        small=0.0,
        tasks={
            "needle": 0.18,
            "key_value": 0.10,
            "passages": 0.10,
            "closed_book": 0.20,
            "world_text": 0.05,
            "contradiction": 0.09,
            "two_hop": 0.13,
            "reask": 0.10,
            "passkey": 0.05,
            "grounded": 0.07,
            "documents": 0.03,
        },
    ),
    "dense": Mix(
        books=0.08,
        needles=0.08,
        repeats=(0.12, 0.03),
        small=0.6,
        tasks={
            "needle": 0.36,
            "key_value": 0.12,
            "passages": 0.09,
            "closed_book": 0.07,
            "world_text": 0.03,
            "contradiction": 0.08,
            "two_hop": 0.14,
            "reask": 0.14,
            "passkey": 0.05,
            "grounded": 0.07,
            "documents": 0.02,
        },
    ),
}
SMALL = (90, 170)  # tokens of a text that is kept short
# Tokens per fact, word of filler, table line, demonstration, passage; measured with the lab tokenizer, rounded up.
FACT, WORD, LINE, SHOT, PASSAGE, QUESTION = 14, 1.6, 34, 42, 42, 26

Options = dict[str, Any]


def _facts_and_words(rng: np.random.Generator, room: int) -> Options:
    facts = int(rng.integers(0, max(1, room // FACT) + 1))
    return {"facts": facts, "words": int(max(0, room - facts * FACT) / WORD * rng.random())}


def _needle(rng: np.random.Generator, room: int) -> Options:
    questions = int(rng.integers(1, max(2, min(9, room // 50))))
    options = _facts_and_words(rng, room - (QUESTION - 2) * questions)
    # In half of the texts only the entity tells facts apart; otherwise the relation alone is too often enough.
    kinds = int(rng.integers(1, 3)) if rng.random() < 0.5 else None
    options |= {"facts": max(options["facts"], questions - 1), "questions": questions, "kinds": kinds}
    return options | {"hard": float(rng.uniform(0, 0.7))}


def _key_value(rng: np.random.Generator, room: int) -> Options:
    shots = int(rng.integers(0, max(1, min(4, (room - 40) // (LINE + SHOT)))))
    most = (room - 20 - SHOT * (shots + 1)) // LINE
    return {"shots": shots, "k": int(rng.integers(shots + 1, max(shots + 2, most + 1)))}


def _passages(rng: np.random.Generator, room: int) -> Options:
    hops = 2 if rng.random() < 0.25 else 1
    style = "titled" if rng.random() < 0.3 else "numbered"
    return {"n": int(rng.integers(1 + hops, max(2 + hops, (room - QUESTION) // PASSAGE + 1))), "hops": hops, "style": style}


def _closed_book(rng: np.random.Generator, room: int) -> Options:
    return {"questions": int(rng.integers(1, max(2, min(9, room // QUESTION))))}


def _world_text(rng: np.random.Generator, room: int) -> Options:
    return {"facts": int(rng.integers(1, max(2, min(17, room // FACT))))}


def _contradiction(rng: np.random.Generator, room: int) -> Options:
    return _facts_and_words(rng, room - QUESTION - FACT) | {"values": "world" if rng.random() < 0.5 else "split"}


def _two_hop(rng: np.random.Generator, room: int) -> Options:
    steps = bool(rng.random() < 0.6)
    return _facts_and_words(rng, room - (3 if steps else 1) * QUESTION - 2 * FACT) | {"steps": steps}


def _reask(rng: np.random.Generator, room: int) -> Options:
    return _facts_and_words(rng, room - 2 * QUESTION - FACT)


def _passkey(rng: np.random.Generator, room: int) -> Options:
    keys, length = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    words = max(0, room - keys * (14 + 3 * length) - QUESTION) / WORD * rng.random()
    return {"keys": keys, "length": length, "words": int(words)}


def _grounded(rng: np.random.Generator, room: int) -> Options:
    entities = int(rng.integers(2, max(3, min(6, room // 55))))
    return {"entities": entities, "documents": int(rng.integers(1, min(3, entities) + 1)), "paraphrase": bool(rng.random() < 0.2)}


def _documents(rng: np.random.Generator, room: int) -> Options:
    return {"words": int(rng.integers(30, max(31, int(room / 1.8))))}


SIZES: dict[str, Callable[[np.random.Generator, int], Options]] = {
    "needle": _needle,
    "key_value": _key_value,
    "passages": _passages,
    "closed_book": _closed_book,
    "world_text": _world_text,
    "contradiction": _contradiction,
    "two_hop": _two_hop,
    "reask": _reask,
    "passkey": _passkey,
    "grounded": _grounded,
    "documents": _documents,
}
WITH_FILLER = ("needle", "contradiction", "two_hop", "reask", "passkey")


class WorldRows:
    """Rows of a given length; the same interface as `Mixture`."""

    def __init__(self, tokenizer, tokens: np.ndarray, facts: FactMaker, seed: int) -> None:  # type: ignore[no-untyped-def]
        self._seed, self._plain = seed, Mixture(tokenizer, tokens, facts, seed)
        self._encode = word_cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self._bos, self._newline = tokenizer.token_to_id("<s>"), self._encode("\n")
        sample = tokenizer.decode(np.asarray(tokens[:2_000_000]).tolist())
        self._sentences = [s.strip() for s in re.findall(r"(?<=[.!?] )[A-Z][a-z ,;'-]{20,160}[.!?](?= )", sample)]

    def batch(self, step: int, rows: int, length: int, phase: Phase) -> Row:
        """[rows, length] ids and weights."""
        rng, mix = np.random.default_rng([self._seed, 3, step]), MIXES[phase.mix]
        made = [self._row(rng, length, mix) for _ in range(rows)]
        return np.stack([ids for ids, _ in made]), np.stack([weights for _, weights in made])

    def _row(self, rng: np.random.Generator, length: int, mix: Mix) -> Row:
        draw, repeats = rng.random(), mix.repeats[length > 128]
        if draw < mix.books:
            return self._plain.book_row(rng, length)
        if draw < mix.books + repeats:
            return self._plain.repeat_row(rng, length)
        if draw < mix.books + repeats + mix.needles:
            return self._plain.needle_row(rng, length)
        return self._packed(rng, length, mix)

    def _packed(self, rng: np.random.Generator, length: int, mix: Mix) -> Row:
        ids, weights = np.zeros(0, dtype=np.int64), np.zeros(0)
        missed = 0
        while length - len(ids) >= LEAST_ROOM and missed < ATTEMPTS:
            found = self._text(rng, length - len(ids), mix)
            if found is None:
                missed += 1
                continue
            ids, weights = np.concatenate([ids, found[0]]), np.concatenate([weights, found[1]])
        rest, weight = self._plain.book_row(rng, max(2, length - len(ids)))
        return np.concatenate([ids, rest])[:length], np.concatenate([weights, weight])[:length]

    def _text(self, rng: np.random.Generator, room: int, mix: Mix) -> Row | None:
        """One text of the micro-world, or None if the one that was drawn is too long."""
        shares = np.asarray(list(mix.tasks.values()))
        task = list(mix.tasks)[rng.choice(len(shares), p=shares / shares.sum())]
        wanted = int(room * rng.uniform(0.3, 1.0)) if room > 128 else room
        if mix.small and rng.random() < mix.small:
            wanted = min(room, int(rng.integers(*SMALL)))
        options = SIZES[task](rng, wanted)
        if task in WITH_FILLER and rng.random() < 0.5:
            options["filler"] = self._filler
        try:
            example = make_example(task, "train", rng, **options)
        except HeadwiseError:  # sizes that the task refuses: too many passages for its pools, say
            return None
        body, answers = to_row(example, self._encode)
        if len(body) + 1 + len(self._newline) > room:
            return None
        learnt = 1.0 if task in ("world_text", "documents") else CONTEXT_WEIGHT
        weights = [learnt, *np.where(answers, ANSWER_WEIGHT, learnt), *[learnt] * len(self._newline)]
        return np.asarray([self._bos, *body, *self._newline], dtype=np.int64), np.asarray(weights)

    def _filler(self, rng: np.random.Generator, words: int) -> list[str]:
        """Sentences from the books, about `words` words in all."""
        chosen: list[str] = []
        while words > 0:
            chosen.append(self._sentences[rng.integers(len(self._sentences))])
            words -= len(chosen[-1].split())
        return chosen
