"""Training rows of the world models: texts of the micro-world packed one after another, and some of the rows of the first lab model.

Every text starts with its own BOS. Answers weigh 4; facts of the fixed world, which are to be learnt by heart, and documents weigh 1;
other contexts are noise by construction and weigh 0.25.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from headwise.core import HeadwiseError
from headwise.lab.recipe.facts import FactMaker
from headwise.lab.recipe.mixture import ANSWER_WEIGHT, Mixture, Row
from headwise.prompts.microworld import make_example, to_row, word_cache

CONTEXT_WEIGHT = 0.25
LEAST_ROOM = 32  # tokens; smaller gaps at the end of a row are filled with book text
ATTEMPTS = 6
# Shares of the texts drawn; a task that does not fit into the room left is drawn again.
SHARES = {
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
}
# Tokens per fact, word of filler, table line, demonstration, passage; measured with the lab tokenizer, rounded up.
FACT, WORD, LINE, SHOT, PASSAGE, QUESTION = 14, 1.6, 34, 42, 42, 26

Options = dict[str, Any]


def _facts_and_words(rng: np.random.Generator, room: int) -> Options:
    facts = int(rng.integers(0, max(1, room // FACT) + 1))
    return {"facts": facts, "words": int(max(0, room - facts * FACT) / WORD * rng.random())}


def _needle(rng: np.random.Generator, room: int) -> Options:
    questions = int(rng.integers(1, max(2, min(9, room // 50))))
    options = _facts_and_words(rng, room - (QUESTION - 2) * questions)
    return options | {"facts": max(options["facts"], questions - 1), "questions": questions}


def _key_value(rng: np.random.Generator, room: int) -> Options:
    shots = int(rng.integers(0, 4))
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
        self._tasks, shares = list(SHARES), np.asarray(list(SHARES.values()))
        self._shares = shares / shares.sum()

    def batch(self, step: int, rows: int, length: int, edges: float = 0.0) -> Row:
        """[rows, length] ids and weights. edges: see `Mixture.batch`."""
        rng = np.random.default_rng([self._seed, 3, step])
        made = [self._row(rng, length) for _ in range(rows)]
        return np.stack([ids for ids, _ in made]), np.stack([weights for _, weights in made])

    def _row(self, rng: np.random.Generator, length: int) -> Row:
        draw, repeats = rng.random(), 0.22 if length <= 128 else 0.07
        if draw < 0.10:
            return self._plain.book_row(rng, length)
        if draw < 0.10 + repeats:
            return self._plain.repeat_row(rng, length)
        if draw < 0.27 + repeats:
            return self._plain.needle_row(rng, length)
        return self._packed(rng, length)

    def _packed(self, rng: np.random.Generator, length: int) -> Row:
        ids, weights = np.zeros(0, dtype=np.int64), np.zeros(0)
        missed = 0
        while length - len(ids) >= LEAST_ROOM and missed < ATTEMPTS:
            found = self._text(rng, length - len(ids))
            if found is None:
                missed += 1
                continue
            ids, weights = np.concatenate([ids, found[0]]), np.concatenate([weights, found[1]])
        rest, weight = self._plain.book_row(rng, max(2, length - len(ids)))
        return np.concatenate([ids, rest])[:length], np.concatenate([weights, weight])[:length]

    def _text(self, rng: np.random.Generator, room: int) -> Row | None:
        """One text of the micro-world, or None if the one that was drawn is too long."""
        task = self._tasks[rng.choice(len(self._tasks), p=self._shares)]
        wanted = int(room * rng.uniform(0.3, 1.0)) if room > 128 else room
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
