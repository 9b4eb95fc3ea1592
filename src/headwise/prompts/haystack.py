"""Haystacks: long plain text as sentences of token ids, so that places between sentences are known by construction."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np

from headwise.heads.errors import PromptError
from headwise.prompts.encoder import PieceEncoder

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
# The end of a sentence: a full stop, question or exclamation mark, closing quotes, then white space.
SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*(?=\s)|(?=\n)")


def bundled_texts() -> list[str]:
    """The three public-domain books that come with headwise, without their headers."""
    folder = resources.files("headwise.prompts").joinpath("data/haystack")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".gz"))
    return [clean(gzip.decompress(folder.joinpath(name).read_bytes()).decode("utf-8")) for name in names]


def read_texts(folder: str | Path) -> list[str]:
    """All .txt and .md files (plain or .gz) of a folder, in the order of their names."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PromptError(f"no such haystack folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    if not paths:
        raise PromptError(f"{folder} holds no text; expected files ending in {', '.join(SUFFIXES)}")
    return [clean(_read(path)) for path in paths]


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise PromptError(f"cannot read haystack text {path}: {error}") from error


def clean(text: str) -> str:
    """Unix line ends, no Markdown header or heading marks, plain quotes and dashes, one line per paragraph."""
    if "\n-------\n" in text.replace("\r\n", "\n")[:600]:
        text = text.replace("\r\n", "\n").split("\n-------\n", 1)[1]
    for old, new in (("\r\n", "\n"), ("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("—", "--"), ("##", "")):
        text = text.replace(old, new)
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n\n")) if line)


@dataclass(frozen=True)
class Window:
    """Haystack tokens and the places where a sentence may be inserted (0 and the end included), ascending."""

    ids: tuple[int, ...]
    places: tuple[int, ...]

    def place(self, depth: float) -> int:
        """The last place at or before `depth` (fraction of the window, in [0, 1])."""
        target = round(depth * len(self.ids))
        return max(place for place in self.places if place <= target)


class Haystack:
    """Texts as one long row of sentences; windows of any length start at a sentence."""

    def __init__(self, texts: Iterable[str], encoder: PieceEncoder) -> None:
        sentences = [encoder.encode(piece) for text in texts for piece in split_sentences("\n" + text)]
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
        """`tokens` tokens from a random sentence on. part: which share of the haystack to draw from, as (from, to) fractions.

        Raises `PromptError` if that share is too short: text is never repeated to reach a length.
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
    cuts = [match.end() for match in SENTENCE.finditer(text)]
    bounds = sorted({0, *cuts, len(text)})
    return [text[a:b] for a, b in pairwise(bounds)]
