"""Haystacks: long plain text as sentences of token ids, so that places between sentences are known by construction."""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np

from headwise.heads.errors import PromptError
from headwise.heads.files import read_text
from headwise.prompts.encoder import PieceEncoder

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
# Marks that end a sentence in scripts that may go on without white space: CJK, Arabic, Devanagari, Armenian, Ethiopic, Burmese, Khmer ...
ENDS = "。！？｡﹒﹖﹗︒؟۔։।॥။።፧፨។៕᠃᠉༎"
CLOSING = "\"')\\]」』”’）】》〉］｝"
EAST = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
# The end of a sentence: a full stop, question or exclamation mark, closing quotes, then white space; the marks above without white space;
# a full stop in front of a Chinese, Japanese or Korean letter; three dots in front of a letter that is not Latin; the end of a line.
SENTENCE = re.compile(
    rf"(?<=[.!?])[\"')\]]*(?=\s)|(?<=[{ENDS}])(?![{ENDS}])[{CLOSING}]*|(?<=．)(?!\d)[{CLOSING}]*|(?<=[.!?])[{CLOSING}]*(?=[{EAST}])"
    rf"|(?<=…)(?=[{CLOSING}]*\s*[\u0370-\u1fff{EAST}])[{CLOSING}]*|(?=\n)"
)
LONGEST_SENTENCE = 2000  # characters; what is longer has no sentence ends (the longest sentence of the bundled books has 1,880)
UNPUNCTUATED = 500  # mean characters between sentence ends from which on a text counts as one without
SPACED_CUT, UNSPACED_CUT = 24, 12  # characters of the stretches that take the place of sentences there
TOLERANCE = 0.25  # how far a needle may stand from the wanted depth, beyond one sentence


def bundled_texts() -> list[str]:
    """The three public-domain books that come with headwise, without their headers."""
    folder = resources.files("headwise.prompts").joinpath("data/haystack")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".gz"))
    return [clean(gzip.decompress(folder.joinpath(name).read_bytes()).decode("utf-8")) for name in names]


def read_texts(folder: str | Path, what: str = "haystack") -> list[str]:
    """All .txt and .md files (plain or .gz) of a folder, in the order of their names.

    Args:
        folder: The folder.
        what: What messages call it.

    Raises:
        PromptError: the folder is missing or holds no text, or a file cannot be read (see `headwise.heads.files.read_text`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PromptError(f"no such {what} folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    if not paths:
        raise PromptError(f"{folder} holds no text; expected files ending in {', '.join(SUFFIXES)}")
    return [clean(read_text(path, f"{what} text", PromptError)) for path in paths]


def clean(text: str) -> str:
    """Unix line ends, no Markdown header or heading marks, plain quotes and dashes, one line per paragraph."""
    if "\n-------\n" in text.replace("\r\n", "\n")[:600]:
        text = text.replace("\r\n", "\n").split("\n-------\n", 1)[1]
    for old, new in (("\r\n", "\n"), ("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("—", "--"), ("##", "")):
        text = text.replace(old, new)
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n\n")) if line)


@dataclass(frozen=True)
class Window:
    """A stretch of a haystack.

    Attributes:
        ids: its token ids.
        places: token positions where a sentence may be inserted, ascending; 0 and the end are among them.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]

    def place(self, depth: float) -> int:
        """The last place at or before a depth.

        Args:
            depth: fraction of the window, in [0, 1].

        Returns:
            One of `places`, in tokens.
        """
        target = round(depth * len(self.ids))
        return max(place for place in self.places if place <= target)

    def checked_place(self, depth: float) -> int:
        """Like `place`.

        Raises:
            PromptError: the place is off by more than `TOLERANCE` of the window and by more than `LONGEST_SENTENCE` tokens.
        """
        place, size = self.place(depth), len(self.ids)
        off = abs(place - depth * size)
        if off > TOLERANCE * size and off > LONGEST_SENTENCE:
            raise PromptError(
                f"depth {depth:g} of {size} tokens was asked for, but the nearest place between sentences is at {place / size:.2f}, more than "
                f"{TOLERANCE:g} away; the text has hardly any sentence ends, use another --haystack"
            )
        return place


class Haystack:
    """Texts as one long row of sentences; windows of any length start at a sentence.

    Texts without sentence ends are cut between words, or between characters where a script has no spaces.
    """

    def __init__(self, texts: Iterable[str], encoder: PieceEncoder) -> None:
        """Encode the texts.

        Args:
            texts: from first to last; each begins a new line.
            encoder: of the model that reads the windows.

        Raises:
            PromptError: there is no text.
        """
        sentences = [encoder.encode(piece) for text in texts for piece in _stretches("\n" + text)]
        self._ids = np.asarray([i for sentence in sentences for i in sentence], dtype=np.int64)
        self._starts = np.cumsum([0, *map(len, sentences)])[:-1]
        if not len(self._ids):
            raise PromptError("the haystack is empty; give texts with --haystack DIR")

    def __len__(self) -> int:
        """Tokens in all."""
        return len(self._ids)

    @property
    def digest(self) -> str:
        """Short fingerprint of the token ids."""
        return hashlib.sha256(self._ids.tobytes()).hexdigest()[:16]

    def window(self, tokens: int, seed: Sequence[int], part: tuple[float, float] = (0.0, 1.0)) -> Window:
        """A window from a random sentence on.

        Args:
            tokens: its length.
            seed: the window is a function of it; no number is negative.
            part: which share of the haystack to draw from, as (from, to) fractions.

        Returns:
            Exactly `tokens` ids.

        Raises:
            PromptError: that share is too short; text is never repeated to reach a length.
        """
        low, high = (round(share * len(self._ids)) for share in part)
        starts = self._starts[(self._starts >= low) & (self._starts + tokens <= high)]
        if not len(starts):
            raise PromptError(
                f"a context of {tokens} tokens was asked for, but the haystack has only {high - low}; add texts with --haystack DIR"
            )
        start = int(np.random.default_rng(list(seed)).choice(starts))
        inside = self._starts[(self._starts > start) & (self._starts < start + tokens)] - start
        ids = tuple(int(i) for i in self._ids[start : start + tokens])
        return Window(ids, (0, *(int(i) for i in inside), tokens))


def split_sentences(text: str) -> list[str]:
    """Sentences with the white space in front of each; joined they give the text."""
    return _cut(text, [match.end() for match in SENTENCE.finditer(text)])


def _stretches(text: str) -> list[str]:
    """Sentences; where a text has none for long, stretches of some words or characters. Joined they give the text."""
    sentences = split_sentences(text)
    without_ends = len(sentences) == 1 or len(text) > UNPUNCTUATED * len(sentences)
    longest = SPACED_CUT if without_ends else LONGEST_SENTENCE
    return [part for sentence in sentences for part in ([sentence] if len(sentence) <= longest else _between_words(sentence))]


def _between_words(text: str) -> list[str]:
    """Stretches of at most `SPACED_CUT` characters that begin with white space, shorter ones where there is none; marks stay with letters."""
    cuts, start = [], 0
    while len(text) - start > SPACED_CUT:
        spaces = [at for at in range(start + 1, start + SPACED_CUT + 1) if text[at].isspace() and not text[at - 1].isspace()]
        end = spaces[-1] if spaces else start + UNSPACED_CUT
        while (
            end < len(text) and not spaces and (unicodedata.category(text[end])[0] == "M" or "\u200d" in text[end - 1 : end + 1])
        ):
            end += 1
        cuts.append(end)
        start = end
    return _cut(text, cuts)


def _cut(text: str, places: Iterable[int]) -> list[str]:
    bounds = sorted({0, *places, len(text)})
    return [text[a:b] for a, b in pairwise(bounds)]
