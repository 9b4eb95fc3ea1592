"""Training rows: needle questions in book text, clozes over book text, repeated random sequences, plain book text.

Each row is (ids [L], weights [L]) where weights[t] belongs to the prediction *of* ids[t]. Everything is drawn from a generator
seeded with (seed, step), so a resumed training sees the same rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headwise_lab.recipe.facts import Fact, FactMaker
from headwise_lab.recipe.recipes import Phase

ANSWER_WEIGHT = 4.0
REPEAT_WEIGHT = 2.0
Row = tuple[np.ndarray, np.ndarray]


class Mixture:
    """Rows of a given length from tokenised books and a fact maker."""

    def __init__(self, tokenizer, tokens: np.ndarray, facts: FactMaker, seed: int) -> None:  # type: ignore[no-untyped-def]
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
        self._tokens, self._facts, self._seed = tokens, facts, seed
        self._edges = 0.0
        self._bos = tokenizer.token_to_id("<s>")
        self._question, self._answer = encode("Question:"), encode("\nAnswer:")
        self._stop, self._newline = encode("."), encode("\n")
        self._cloze = [
            encode(t) for t in (" How does the passage go on?", " What comes next?", " Finish the sentence from the text.")
        ]
        self._vocabulary = tokenizer.get_vocab_size()
        vocabulary = tokenizer.get_vocab()
        ends = [i for piece, i in vocabulary.items() if piece.rstrip('"')[-1:] in (".", "!", "?") or piece == "Ċ"]
        self._ends_sentence = np.zeros(self._vocabulary, dtype=bool)
        self._ends_sentence[ends] = True

    def batch(self, step: int, rows: int, length: int, phase: Phase) -> Row:
        """Rows of one update; the same step gives the same rows.

        Args:
            step: Number of the update, from 0.
            rows: How many.
            length: Tokens of each.
            phase: Its `edges` count.

        Returns:
            Ids and weights, [rows, length] each.
        """
        rng = np.random.default_rng([self._seed, step])
        self._edges = phase.edges
        made = [self._kind(rng)(rng, length) for _ in range(rows)]
        return np.stack([ids for ids, _ in made]), np.stack([weights for _, weights in made])

    def _kind(self, rng: np.random.Generator) -> Callable[[np.random.Generator, int], Row]:
        draw = rng.random()
        if draw < 0.72:
            return self.needle_row
        if draw < 0.90:
            return self.repeat_row
        return self.book_row

    def _text(self, rng: np.random.Generator, length: int) -> np.ndarray:
        start = int(rng.integers(0, len(self._tokens) - length))
        return np.asarray(self._tokens[start : start + length], dtype=np.int64)

    def book_row(self, rng: np.random.Generator, length: int) -> Row:
        """Book text behind a BOS token, every prediction of weight 1."""
        ids = self._text(rng, length)
        ids[0] = self._bos
        return ids, np.ones(length)

    def repeat_row(self, rng: np.random.Generator, length: int) -> Row:
        """Book text, then a random sequence, again and again (period from 6 tokens to half the row)."""
        ids, weights = self.book_row(rng, length)
        lead = int(rng.integers(1, max(2, length // 3))) if rng.random() < 0.5 else 1
        period = int(np.exp(rng.uniform(np.log(6), np.log((length - lead) // 2))))
        unit = rng.integers(259, self._vocabulary, size=period)
        if rng.random() < 0.4:
            unit = self._text(rng, period)
        gap = int(rng.integers(0, 9))
        cycle = np.concatenate([unit, self._text(rng, gap)]) if gap else unit
        filled = np.tile(cycle, -(-length // len(cycle)))
        ids[lead:] = filled[: length - lead]
        offset = np.arange(length - lead)
        copied = (offset >= len(cycle)) & (offset % len(cycle) < period) & (offset % len(cycle) > 0)
        weights[lead:] = np.where(copied, REPEAT_WEIGHT, 0.0)
        return ids, weights

    def needle_row(self, rng: np.random.Generator, length: int) -> Row:
        """BOS, book text with facts at sentence ends, then questions about some of them (and clozes about the text)."""
        most = max(1, min(12, length // 48))
        asked = int(rng.integers(1, most + 1))
        edge = bool(self._edges) and rng.random() < self._edges
        if edge:
            asked = 1
        told = round(float(np.exp(rng.uniform(np.log(asked), np.log(max(asked, length / 45))))))
        facts = [self._facts(rng) for _ in range(max(asked, told))]
        blocks: list[Row] = []
        for fact in facts[:asked]:
            blocks.append(self._ask(fact.question, fact.lead, fact.answer + self._stop))
        room = length - 2 - sum(len(b[0]) for b in blocks)
        while len(blocks) > 1 and room < 24 * len(blocks):
            room += len(blocks.pop()[0])
        facts = [f for i, f in enumerate(facts) if i < len(blocks) or i >= asked]
        needles = 0
        kept: list[Fact] = []
        for fact in facts:
            if needles + len(fact.sentence) < room * 0.8 or not kept:
                kept.append(fact)
                needles += len(fact.sentence)
        blocks = blocks[: len(kept)]
        cloze_room = 44 if rng.random() < 0.5 and room - needles > 100 else 0
        text = self._text(rng, max(4, room - needles - cloze_room))
        context = self._insert(text, [f.sentence for f in kept], rng)
        if edge:
            others = self._insert(text, [f.sentence for f in kept[1:]], rng) if len(kept) > 1 else text
            context = np.concatenate([kept[0].sentence, others] if rng.random() < 0.5 else [others, kept[0].sentence])
        if cloze_room:
            blocks.append(self._cloze_block(text, rng))
        order = rng.permutation(len(blocks))
        opening = np.asarray([self._bos, *context, *self._newline])
        ids = np.concatenate([opening, *[blocks[i][0] for i in order], self._text(rng, length)])[:length]
        weights = np.concatenate([np.ones(len(opening)), *[blocks[i][1] for i in order], np.ones(length)])[:length]
        return ids.astype(np.int64), weights

    def _ask(self, question: list[int], lead: list[int], answer: list[int]) -> Row:
        ids = [*self._question, *question, *self._answer, *lead, *answer, *self._newline]
        weights = np.ones(len(ids))
        weights[len(ids) - len(answer) - 1 :] = ANSWER_WEIGHT
        return np.asarray(ids), weights

    def _cloze_block(self, text: np.ndarray, rng: np.random.Generator) -> Row:
        start = int(rng.integers(0, max(1, len(text) - 24)))
        lead, answer = int(rng.integers(3, 8)), int(rng.integers(4, 17))
        piece = [int(i) for i in text[start : start + lead + answer]]
        ask = self._cloze[rng.integers(len(self._cloze))]
        return self._ask(ask, piece[:lead], piece[lead:] or self._stop)

    def _insert(self, text: np.ndarray, sentences: list[list[int]], rng: np.random.Generator) -> np.ndarray:
        ends = np.flatnonzero(self._ends_sentence[text]) + 1
        if len(ends) == 0:
            ends = np.asarray([len(text)])
        places = sorted(zip(rng.choice(ends, size=len(sentences)), range(len(sentences)), strict=True))
        parts, last = [], 0
        for place, which in places:
            parts += [text[last:place], np.asarray(sentences[which])]
            last = place
        return np.concatenate([*parts, text[last:]])
