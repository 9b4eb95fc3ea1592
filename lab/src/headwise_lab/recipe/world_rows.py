"""Training rows of the world models: texts of the micro-world packed one after another, and some of the rows of the first lab model.

Every text starts with its own BOS. Answers weigh 4; facts of the fixed world, which are to be learnt by heart, and documents weigh 1;
other contexts are noise by construction and weigh little.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads import HeadwiseError
from headwise_lab.microworld.reask import FLIP
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.texts import to_row, word_cache
from headwise_lab.recipe.facts import FactMaker
from headwise_lab.recipe.find_rows import PassageFinder, paragraphs
from headwise_lab.recipe.mixture import ANSWER_WEIGHT, Mixture, Row
from headwise_lab.recipe.noise import noisy_example
from headwise_lab.recipe.recall import recall_text
from headwise_lab.recipe.recipes import Phase

MIN_ROOM = 32  # tokens; smaller gaps at the end of a row are filled with book text
ATTEMPTS = 6


@dataclass(frozen=True)
class Mix:
    """What rows consist of.

    books, needles: shares of rows of plain book text and of the first lab model's needle questions. repeats: of repeated sequences, at up
    to 128 tokens and at more. small: share of texts that are kept short, so that more answers fit. context: weight of context tokens.
    find, recall: shares of texts in which a passage of running text is looked for (`find_rows.py`) and of those that say everything twice
    (`recall.py`; lists: its share of lists). tasks: relative shares of the others (one that does not fit into the room left is drawn again).
    flip: probability that a right answer is taken back where the challenge has the cue.
    """

    books: float
    needles: float
    repeats: tuple[float, float]
    small: float
    context: float
    find: float
    recall: float
    lists: float
    tasks: Mapping[str, float]
    flip: float = FLIP


# `first` makes copying form early; `many` has all tasks, and as many questions per text as fit.
MIXES = {
    "first": Mix(
        books=0.08,
        needles=0.12,
        repeats=(0.20, 0.07),
        small=0.6,
        context=0.25,
        find=0.0,
        recall=0.0,
        lists=0.0,
        tasks={
            "needle": 0.46,
            "key_value": 0.10,
            "passages": 0.05,
            "closed_book": 0.07,
            "world_text": 0.03,
            "contradiction": 0.08,
            "two_hop": 0.10,
            "reask": 0.05,
            "passkey": 0.05,
            "grounded": 0.04,
            "documents": 0.01,
        },
    ),
    "many": Mix(
        books=0.08,
        needles=0.05,
        repeats=(0.10, 0.03),
        small=0.25,
        context=0.1,
        find=0.0,
        recall=0.3,
        lists=0.15,
        tasks={
            "needle": 0.28,
            "key_value": 0.16,
            "passages": 0.14,
            "closed_book": 0.05,
            "world_text": 0.03,
            "contradiction": 0.09,
            "two_hop": 0.18,
            "reask": 0.12,
            "passkey": 0.05,
            "grounded": 0.06,
            "documents": 0.02,
        },
    ),
}
# Nothing but matching: without it a model tells facts apart by their relation and never learns to look at the name.
MIXES["match"] = replace(MIXES["many"], books=0.05, needles=0.0, repeats=(0.1, 0.05), recall=1.0, lists=0.6)
# The first lab model's mixture: copying forms in 450 updates where all of a running text is learnt, and not in 900 where only answers count.
MIXES["plain"] = replace(MIXES["many"], books=0.10, needles=0.72, repeats=(0.18, 0.18))
# Re-asking is one bit per question, so it needs most of the texts; first without flips, so that right and wrong are told apart at all.
MIXES["sure"] = replace(
    MIXES["many"], books=0.04, needles=0.0, repeats=(0.02, 0.02), small=0.0, recall=0.0, tasks={"reask": 0.85, "needle": 0.15}, flip=0.0
)
# Flips at even odds first, so that the cue is learnt at all; then as rarely as the card has them: a model that is not quite sure what is right
# takes nearly every cued answer back at even odds.
MIXES["doubt"] = replace(MIXES["sure"], flip=0.5)
MIXES["waver"] = replace(MIXES["sure"], flip=FLIP)
MIXES["long"] = replace(MIXES["many"], small=0.1, find=0.3)
SMALL = (90, 170)  # tokens of a text that is kept short
# Tokens per fact, word of filler, table line, demonstration, passage; measured with the lab tokenizer, rounded up.
FACT, WORD, LINE, SHOT, PASSAGE, QUESTION = 14, 1.6, 34, 42, 42, 26

MOST_TURNS = 8
FOUND_IN = 1100  # tokens of a text in which a passage is looked for, at most

Options = dict[str, Any]


def _facts_and_words(rng: np.random.Generator, room: int) -> Options:
    facts = int(rng.integers(0, max(1, room // FACT) + 1))
    return {"facts": facts, "words": int(max(0, room - facts * FACT) / WORD * rng.random())}


def _needle(rng: np.random.Generator, room: int) -> Options:
    options, questions = _asked(rng, room, QUESTION, FACT)
    # In half of the texts only the entity tells facts apart; otherwise the relation alone is too often enough.
    kinds = int(rng.integers(1, 3)) if rng.random() < 0.5 else None
    return options | {"questions": questions, "kinds": kinds, "hard": float(rng.uniform(0, 0.7))}


def _key_value(rng: np.random.Generator, room: int) -> Options:
    length = int(rng.integers(4, 9))
    line, shot = LINE - 8 + length, SHOT - 8 + length
    shots = int(rng.integers(0, max(0, min(MOST_TURNS, (room - 20) // (line + shot) - 1)) + 1))
    most = (room - 20 - shot * (shots + 1)) // line
    return {"shots": shots, "k": int(rng.integers(shots + 1, max(shots + 1, most) + 1)), "key_length": length}


def _passages(rng: np.random.Generator, room: int) -> Options:
    hops = 2 if rng.random() < 0.25 else 1
    style = "titled" if rng.random() < 0.3 else "numbered"
    # A passage holds two or three facts, so that there may be as many questions as passages.
    questions = int(rng.integers(1, max(1, min(MOST_TURNS, room // (PASSAGE + QUESTION))) + 1))
    n = int(rng.integers(1 + hops, max(1 + hops, (room - QUESTION * questions) // PASSAGE) + 1))
    return {"n": n, "hops": hops, "style": style, "questions": min(questions, n)}


def _closed_book(rng: np.random.Generator, room: int) -> Options:
    return {"questions": int(rng.integers(1, max(2, min(9, room // QUESTION))))}


def _world_text(rng: np.random.Generator, room: int) -> Options:
    return {"facts": int(rng.integers(1, max(2, min(17, room // FACT))))}


def _contradiction(rng: np.random.Generator, room: int) -> Options:
    options, questions = _asked(rng, room, QUESTION, FACT)
    return options | {"values": "world" if rng.random() < 0.5 else "split", "questions": questions}


def _two_hop(rng: np.random.Generator, room: int) -> Options:
    steps = bool(rng.random() < 0.6)
    options, chains = _asked(rng, room, (3 if steps else 1) * QUESTION, 2 * FACT)
    return options | {"facts": max(options["facts"], 2 * (chains - 1)), "steps": steps, "chains": chains}


def _reask(rng: np.random.Generator, room: int) -> Options:
    options, rounds = _asked(rng, room, 2 * QUESTION, 2 * FACT)
    return options | {"facts": max(1, options["facts"] + 2 * rounds - 1), "rounds": rounds}


def _asked(rng: np.random.Generator, room: int, turn: int, needs: int) -> tuple[Options, int]:
    """How many turns (of `turn` tokens, about facts of `needs` tokens), and the facts and filler for the room they leave."""
    most = max(1, min(MOST_TURNS, room // (turn + needs)))
    turns = int(rng.integers(1, most + 1, 2).max())  # answers are what is learnt from, so rather more than fewer
    options = _facts_and_words(rng, max(0, room - turns * (turn + needs)))
    return options | {"facts": options["facts"] + turns - 1}, turns


def _passkey(rng: np.random.Generator, room: int) -> Options:
    length = int(rng.integers(3, 6))
    keys = int(rng.integers(1, max(2, min(6, room // (14 + 4 * length)))))
    asks = int(rng.integers(1, keys + 1))
    words = max(0, room - keys * (14 + 3 * length) - asks * QUESTION) / WORD * rng.random()
    return {"keys": keys, "length": length, "asks": asks, "words": int(words)}


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
WITH_NOISE = (*WITH_FILLER, "passages")  # tasks whose answers repeat no wording


class WorldRows:
    """Rows of a given length; the same interface as `Mixture`."""

    def __init__(self, tokenizer, tokens: np.ndarray, facts: FactMaker, seed: int, articles: str = "") -> None:  # type: ignore[no-untyped-def]
        """articles: encyclopedic text that passages are taken from, besides the books."""
        self._seed, self._plain = seed, Mixture(tokenizer, tokens, facts, seed)
        self._encode = word_cache(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        self._bos, self._newline = tokenizer.token_to_id("<s>"), self._encode("\n")
        sample = tokenizer.decode(np.asarray(tokens[:2_000_000]).tolist())
        blocks = paragraphs([sample])
        blocks += paragraphs([articles]) * max(1, len(blocks) // (2 * max(1, len(articles) // 1500)))
        self._finder = PassageFinder(blocks, self._encode)
        self._words = re.findall(r"\b[a-z]{2,9}\b", sample[:400_000])
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
        while length - len(ids) >= MIN_ROOM and missed < ATTEMPTS:
            found = self._text(rng, length - len(ids), mix)
            if found is None:
                missed += 1
                continue
            ids, weights = np.concatenate([ids, found[0]]), np.concatenate([weights, found[1]])
        rest, weight = self._plain.book_row(rng, max(2, length - len(ids)))
        return np.concatenate([ids, rest])[:length], np.concatenate([weights, weight])[:length]

    def _text(self, rng: np.random.Generator, room: int, mix: Mix) -> Row | None:
        """One text of the micro-world, or None if the one that was drawn is too long."""
        if mix.find and rng.random() < mix.find:
            return self._weighted(*self._finder.text(rng, min(room, FOUND_IN)), mix.context, room)
        if mix.recall and rng.random() < mix.recall:
            return self._weighted(*recall_text(rng, room - 8, self._encode, self._words, mix.lists), mix.context, room)
        shares = np.asarray(list(mix.tasks.values()))
        task = list(mix.tasks)[rng.choice(len(shares), p=shares / shares.sum())]
        wanted = int(room * rng.uniform(0.3, 1.0)) if room > 128 else room
        if mix.small and rng.random() < mix.small:
            wanted = min(room, int(rng.integers(*SMALL)))
        options = SIZES[task](rng, wanted)
        if task == "reask":
            options["flip"] = mix.flip
        if task in WITH_FILLER and rng.random() < 0.5:
            options["filler"] = self._filler
        try:
            example = make_example(task, "train", rng, **options)
        except HeadwiseError:  # sizes that the task refuses: too many passages for its pools, say
            return None
        if task in WITH_NOISE:
            example = noisy_example(rng, example, self._words)
        body, answers = to_row(example, self._encode)
        return self._weighted(body, answers, 1.0 if task in ("world_text", "documents") else mix.context, room)

    def _weighted(
        self, body: Sequence[int], answers: Sequence[bool] | NDArray[np.bool_], context: float, room: int
    ) -> Row | None:
        """Ids and weights with BOS and a line break; None if that is too long."""
        if len(body) + 1 + len(self._newline) > room:
            return None
        weights = [context, *np.where(answers, ANSWER_WEIGHT, context), *[context] * len(self._newline)]
        return np.asarray([self._bos, *body, *self._newline], dtype=np.int64), np.asarray(weights)

    def _filler(self, rng: np.random.Generator, words: int) -> list[str]:
        """Sentences from the books, about `words` words in all."""
        chosen: list[str] = []
        while words > 0:
            chosen.append(self._sentences[rng.integers(len(self._sentences))])
            words -= len(chosen[-1].split())
        return chosen
