"""Key-value prompts for finding heads: a JSON object, demonstrations out of it, a key to look up (Hua et al. 2025, arXiv:2505.07293).

Values are sentences of real text, wording is fixed, and as many pairs stand in a prompt as a given length takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import PromptError
from headwise.methods.influence.options import Proxy
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import split_sentences
from headwise.prompts.prompt import Encode, Piece, Prompt, PromptBuilder, Turn
from headwise.prompts.words import random_key

INTRO = "Below is a JSON object. For every key that is asked for, say its value and nothing else."
SPLIT = "selection"  # of the micro-world: lab models were never trained on these keys
SHORTEST = 3  # words of a value
UNSAFE = '"\\\n{}'  # what JSON would have to escape, and its brackets


class ProxyPrompts:
    """Proxy prompts over one pool of sentences. Prompt i depends on options, texts, tokenizer and i alone."""

    def __init__(self, texts: Sequence[str], encoder: PieceEncoder, options: Proxy) -> None:
        """Prepare the pool of sentences.

        Args:
            texts: Texts whose sentences are values.
            encoder: Of the model whose heads are scored.
            options: Sizes, number of prompts and seed.
        """
        self.options, self.sizes, self._encoder = options, options.sizes(), encoder
        self._encode: Encode = lru_cache(maxsize=100_000)(encoder.encode)
        self._fits = lru_cache(maxsize=100_000)(self._can_be_value)
        self._sentences = _sentences(texts)

    def __len__(self) -> int:
        return self.options.samples

    @property
    def digest(self) -> str:
        """Short fingerprint of the sentences that values are drawn from."""
        return hashlib.sha256("\n".join(self._sentences).encode()).hexdigest()[:16]

    def __getitem__(self, index: int) -> Prompt:
        """Prompt `index`, its answer as `gold`.

        Its spans are pair/1, pair/1/key, pair/1/value, ...; `value` (also `answer`), `key`, `question`.

        Raises:
            IndexError: There is no such prompt.
            PromptError: The asked pairs do not fit into the length, or the texts have too few sentences.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng, options = np.random.default_rng([self.options.seed, 4, index]), self.options
        asked = options.shots + 1
        stream = self._pairs(rng)
        pairs = list(islice(stream, options.pairs or asked))
        if len(pairs) < (options.pairs or asked):
            raise PromptError(
                f"the texts hold {len(pairs)} sentences of at most {self.sizes.value_tokens} tokens that can stand in JSON, but a prompt "
                f"needs {options.pairs or asked}; give more text or a larger value_tokens"
            )
        for key, _ in pairs[:asked]:
            self._encoder.encode_checked(key, "key")
        if options.pairs is None:
            self._fill(pairs, stream)
        places = rng.permutation(len(pairs))  # where each pair stands; the first of them are asked for
        prompt = self._compose(pairs, places, asked)
        size = len(prompt.ids) + len(prompt.gold)
        if size > self.sizes.length:
            raise PromptError(
                f"a proxy prompt of {len(pairs)} pairs takes {size} tokens with its answer, but the length is {self.sizes.length}; "
                "use a greater length, fewer pairs, fewer shots or a smaller key_length"
            )
        return prompt

    def _pairs(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Different random keys with different values, until the values run out."""
        used: set[str] = set()
        for place in rng.permutation(len(self._sentences)):
            if not self._fits(self._sentences[place]):
                continue
            key = random_key(rng, SPLIT, self.sizes.key_length)
            while key in used:
                key = random_key(rng, SPLIT, self.sizes.key_length)
            used.add(key)
            yield key, self._sentences[place]

    def _can_be_value(self, sentence: str) -> bool:
        """Whether a sentence has few enough tokens and survives tokenisation."""
        ids = self._encode(sentence)
        return len(ids) <= self.sizes.value_tokens and self._encoder.decode(ids).strip() == sentence

    def _fill(self, pairs: list[tuple[str, str]], stream: Iterator[tuple[str, str]]) -> None:
        """Add pairs as long as they fit beside what is asked about the first ones."""
        bare = self._compose(pairs, np.arange(len(pairs)), len(pairs))
        size = len(bare.ids) + len(bare.gold)
        for key, value in stream:
            size += sum(len(self._encode(piece.text)) for piece in _line(key, value, 0, ","))
            if size > self.sizes.length:
                break
            pairs.append((key, value))

    def _compose(self, pairs: Sequence[tuple[str, str]], places: NDArray[np.int64], asked: int) -> Prompt:
        lines = sorted(zip(places.tolist(), pairs, strict=True))
        context = [Piece(INTRO + "\n{")]
        for number, (_, (key, value)) in enumerate(lines, 1):
            context += _line(key, value, number, "," if number < len(lines) else "")
        turns = [Turn("user", self._encoded([*context, Piece("\n}")]))]
        for shot, (key, value) in enumerate(pairs[: asked - 1], 1):
            turns.append(Turn("user", self._encoded(_question(key, f"turn/{shot}/question"))))
            turns.append(Turn("assistant", self._encoded([Piece(value, (f"turn/{shot}/answer",)), Piece('"')])))
        key, value = pairs[asked - 1]
        turns.append(Turn("user", self._encoded(_question(key, "question"))))
        name = f"pair/{int(places[asked - 1]) + 1}"
        aliases = {"key": f"{name}/key", "value": f"{name}/value", "answer": f"{name}/value"}
        return PromptBuilder(self._encoder).build(turns, self._encoded([Piece(value)]), aliases)

    def _encoded(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        """The pieces with their ids, most of which are known from other prompts."""
        return tuple(piece._replace(ids=tuple(self._encode(piece.text))) for piece in pieces)


def _line(key: str, value: str, number: int, comma: str) -> list[Piece]:
    """One pair. Commas stand apart, so that every line but the last costs the same wherever it stands."""
    name = f"pair/{number}"
    pieces = [Piece('\n"'), Piece(key, (name, f"{name}/key")), Piece('": "', (name,)), Piece(value, (name, f"{name}/value"))]
    return [*pieces, Piece('"'), *([Piece(comma)] if comma else [])]


def _question(key: str, name: str) -> list[Piece]:
    """A question. The quotation mark that opens the answer is part of it: the value has the same ids in both places."""
    return [Piece("\nQuestion:"), Piece(' "', (name,)), Piece(key, (name,)), Piece('"', (name,)), Piece("\nAnswer:"), Piece(' "')]


def _sentences(texts: Sequence[str]) -> list[str]:
    """All different sentences that can stand in JSON as they are, without their full stops."""
    found = dict.fromkeys(sentence.strip().removesuffix(".") for text in texts for sentence in split_sentences(text))
    return [one for one in found if len(one.split()) >= SHORTEST and not any(mark in one for mark in UNSAFE)]
