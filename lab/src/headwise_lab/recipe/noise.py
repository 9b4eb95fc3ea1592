"""Words dropped, added and exchanged in training texts, so that a model reads sentences it has not seen by the words that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headwise_lab.microworld.names import pick
from headwise_lab.microworld.texts import Example, Pieces

RATE = 0.12  # of the words of a noisy text
SHARE = 0.4  # of texts that are noisy
DROPPED, EXCHANGED = 0.4, 0.3  # of those words; in front of the others a word is added


def noisy_example(rng: np.random.Generator, example: Example, words: Sequence[str]) -> Example:
    """The example, sometimes with noise in the wordings of its facts and questions. words: what is put in."""
    if rng.random() >= SHARE:
        return example
    turns = tuple(replace(turn, ask=noisy_pieces(rng, turn.ask, words)) for turn in example.turns)
    return replace(example, context=noisy_pieces(rng, example.context, words), turns=turns)


def noisy_pieces(rng: np.random.Generator, pieces: Pieces, words: Sequence[str]) -> Pieces:
    """The pieces, with noise in those that stand around entity and value."""
    return tuple(piece._replace(text=_noisy(rng, piece.text, words)) if _is_wording(piece.names) else piece for piece in pieces)


def _is_wording(names: Sequence[str]) -> bool:
    """Whether a piece belongs to a fact, or to a question (no name), and is neither entity nor value."""
    return not names or (names[-1].startswith("fact/") and not any(name.endswith(("/entity", "/value")) for name in names))


def _noisy(rng: np.random.Generator, text: str, words: Sequence[str]) -> str:
    out: list[str] = []
    for part in text.split(" "):
        draw = rng.random() / RATE
        if not part.isalpha() or draw >= 1:
            out.append(part)
        elif draw >= DROPPED:
            out += [pick(rng, words)] if draw < DROPPED + EXCHANGED else [pick(rng, words), part]
    return " ".join(out)
