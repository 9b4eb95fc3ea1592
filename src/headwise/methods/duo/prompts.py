"""Texts that only a model which looks far back can answer: pass-keys hidden in a haystack, all asked for in order at the end.

The idea is DuoAttention's (Xiao et al. 2024, arXiv:2410.10819, section 2.2); wording and words are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack
from headwise.prompts.prompt import Piece, PromptBuilder, Turn
from headwise.prompts.words import check_split, secret_words

STATE = " Keep in mind: the vault's pass-key {number} is"
ASK = "\nQuestion: What is the vault's pass-key {number}?\nAnswer: The vault's pass-key {number} is"
END = "."
DEPTHS = 1000  # evenly spaced depths to draw from


@dataclass(frozen=True)
class LabelledText:
    """A text, and which of its tokens a model can only predict from far back.

    Attributes:
        ids: Token ids [T].
        labels: [T], True for tokens whose prediction counts; never the first, at least one.

    Raises:
        PromptError: Labels that are not so.
    """

    ids: tuple[int, ...]
    labels: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.ids) or not any(self.labels) or self.labels[0]:
            raise PromptError("a labelled text needs as many labels as ids, at least one of them true, and not the first")

    @property
    def places(self) -> list[int]:
        """Positions from which labels are predicted: those right before them."""
        return [place - 1 for place, label in enumerate(self.labels) if label]


@dataclass(frozen=True)
class VaultOptions:
    """What the texts are like; the defaults are the paper's sizes.

    Attributes:
        lengths: Smallest and largest number of tokens of a text.
        keys: Pass-keys of a text.
        words: Words of each, drawn with replacement.
        split: Whose words: `train`, `selection` or `test`; they share no word.
        depths: Where pass-keys may stand, from and to, as fractions in [0, 1].
        part: Share of the haystack to draw from, as (from, to) fractions.
        seed: At least 0.

    Raises:
        PromptError: Numbers out of range.
    """

    lengths: tuple[int, int] = (1_000, 32_000)
    keys: int = 10
    words: int = 32
    split: str = "train"
    depths: tuple[float, float] = (0.05, 0.95)
    part: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        check_split(self.split)
        if not 1 <= self.lengths[0] <= self.lengths[1]:
            raise PromptError(
                f"lengths are the smallest and the largest number of tokens; got {self.lengths[0]} and {self.lengths[1]}"
            )
        if not 1 <= self.keys <= DEPTHS or self.words < 1:
            raise PromptError(f"a text needs 1 to {DEPTHS} pass-keys of at least 1 word; got {self.keys} of {self.words}")
        if self.seed < 0:
            raise PromptError(f"the seed must be at least 0; got {self.seed}")
        if not 0 <= self.depths[0] < self.depths[1] <= 1:
            raise PromptError(f"depths must be two ascending fractions in [0, 1]; got {self.depths[0]:g} and {self.depths[1]:g}")


def vault_texts(haystack: Haystack, encoder: PieceEncoder, options: VaultOptions, count: int) -> list[LabelledText]:
    """Texts with hidden pass-keys; the words of the pass-keys in the answers are their labels.

    Args:
        haystack: What pass-keys are hidden in.
        encoder: Of the model that gates are trained for.
        options: What the texts are like.
        count: How many. A text is decided by the options and its number, so more texts begin with the same ones.

    Returns:
        `count` texts.

    Raises:
        PromptError: Words that the tokenizer loses, lengths without room for the pass-keys, or a haystack that is too short.
    """
    return [_text(haystack, encoder, options, number) for number in range(count)]


def _text(haystack: Haystack, encoder: PieceEncoder, options: VaultOptions, number: int) -> LabelledText:
    rng = np.random.default_rng([options.seed, 11, number])
    length = int(rng.integers(options.lengths[0], options.lengths[1] + 1))
    end = _piece(encoder, END, "full stop")
    stated, asked = [], []
    for key in range(1, options.keys + 1):
        secret = " " + " ".join(rng.choice(secret_words(options.split), size=options.words))
        told = _piece(encoder, secret, "pass-key")  # the same ids in the statement and in the answer
        stated.append((_piece(encoder, STATE.format(number=key), "statement"), told, end))
        lead = _piece(encoder, ASK.format(number=key), "question")
        asked.append([Turn("user", (lead,)), Turn("assistant", (told._replace(names=(f"label/{key}",)), end))])
    turns = [turn for both in asked for turn in both]
    pieces = [piece for statement in stated for piece in statement] + [piece for turn in turns for piece in turn.pieces]
    cost = len(encoder.bos) + sum(len(piece.ids or ()) for piece in pieces)
    if cost >= length:
        raise PromptError(
            f"{options.keys} pass-keys of {options.words} words need {cost} tokens, but a text has only {length}; use longer texts or "
            "fewer and shorter pass-keys"
        )
    window = haystack.window(length - cost, (options.seed, 12, number), options.part)
    depths = np.sort(rng.choice(np.linspace(*options.depths, DEPTHS), size=options.keys, replace=False))
    context, at = [], 0
    for depth, statement in zip(depths, stated, strict=True):
        place = window.place(float(depth))
        context += [Piece(ids=window.ids[at:place]), *statement]
        at = place
    context.append(Piece(ids=window.ids[at:]))
    made = PromptBuilder(encoder).build([Turn("user", tuple(context)), *turns])
    labels = [False] * len(made.ids)
    for key in range(1, options.keys + 1):
        span = made.span(f"label/{key}")
        labels[span.start : span.stop] = [True] * span.length
    return LabelledText(made.ids, tuple(labels))


def _piece(encoder: PieceEncoder, text: str, name: str) -> Piece:
    return Piece(text, ids=encoder.encode_checked(text, name))
