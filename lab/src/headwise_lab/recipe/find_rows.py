"""Texts for ranking: several passages of running text, then some words out of one of them; the answer names the passage.

Self-supervised: the words are a sentence's own, in another order and not all of them. Neighbouring passages of the same text are hard
negatives, since they share names and subject.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from headwise_lab.microworld.names import pick

PASSAGE = 88  # tokens with tag, on average
QUERY = 30
ASKS = (
    "{q}",
    "{q}?",
    "Which passage is about {q}?",
    "Where does it say {q}?",
    "Find the passage with {q}.",
    "What is said of {q}?",
)
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z\"'])")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*|\d[\d,.]*")
# Words that say nothing about a passage's subject.
_EMPTY = """
the a an and or but if then so of to in on at by for from with as into than that this these those it its he she they
them his her their him we us our you your i me my is are was were be been being am has have had do does did not no nor
can could will would shall should may might must there here which who whom whose what when where why how all any some
such one two very also only just more most much many each both other own same up out over under again once about after
before between through during said upon
"""
_NO_SUBJECT = frozenset(_EMPTY.split())


def paragraphs(texts: Iterable[str], least: int = 3) -> list[list[str]]:
    """Paragraphs as lists of sentences of 5 to 60 words; those of at least `least` sentences."""
    found = []
    for text in texts:
        for block in re.split(r"\n\s*\n|\n", text):
            sentences = [s.strip() for s in _SENTENCE.split(" ".join(block.split())) if 5 <= len(s.split()) <= 60]
            if len(sentences) >= least:
                found.append(sentences)
    return found


def read_wikitext(path: Path) -> str:
    """WikiText as plain text: its spaces around marks are taken away, headings are left out, lines with unknown words too."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    lines = (line.strip() for line in text.splitlines())
    kept = (re.sub(r" <unk>", "", line) for line in lines if line and not line.startswith("=") and line.count("<unk>") <= 8)
    return "\n\n".join(_unspaced(line) for line in kept)


def _unspaced(line: str) -> str:
    line = re.sub(r" @(.)@ ", r"\1", line)
    line = re.sub(r" ([,.;:!?)\]])", r"\1", line)
    line = re.sub(r"([(\[]) ", r"\1", line)
    return re.sub(r" '(s|t|re|ve|ll|d|m)\b", r"'\1", line).replace(" n't", "n't")


class PassageFinder:
    """Makes texts out of paragraphs. encode: ids of a piece as it stands inside a longer text."""

    def __init__(self, material: Sequence[Sequence[str]], encode: Callable[[str], Sequence[int]]) -> None:
        self._material, self._encode = material, encode

    def text(self, rng: np.random.Generator, room: int) -> tuple[list[int], list[bool]]:
        """Ids of roughly `room` tokens, and which of them are answers."""
        asks = int(rng.integers(1, max(2, min(5, room // (PASSAGE + QUERY)) + 1)))
        count = max(2, (room - QUERY * asks) // PASSAGE)
        passages = self._passages(rng, count)
        ids, marks = list[int](), list[bool]()
        for number, sentences in enumerate(passages, 1):
            self._add(ids, marks, f"{'' if number == 1 else chr(10)}Passage {number}: {' '.join(sentences)}")
        for which in rng.permutation(len(passages))[:asks]:
            words = _query(rng, pick(rng, passages[which]))
            if len(words.split()) > 1:
                self._add(ids, marks, f"\nQuestion: {pick(rng, ASKS).replace('{q}', words)}\nAnswer:")
                self._add(ids, marks, f" Passage {which + 1}.", answer=True)
        return ids, marks

    def _passages(self, rng: np.random.Generator, count: int) -> list[Sequence[str]]:
        found: list[Sequence[str]] = []
        while len(found) < count:
            place = int(rng.integers(len(self._material) - 1))
            # One or two passages of a place; of one paragraph if it is long enough, else of neighbours.
            for near in self._material[place : place + (2 if rng.random() < 0.5 else 1)]:
                start = int(rng.integers(max(1, len(near) - 2)))
                found.append(near[start : start + int(rng.integers(1, 4))])
        return [found[i] for i in rng.permutation(len(found))[:count]]

    def _add(self, ids: list[int], marks: list[bool], text: str, answer: bool = False) -> None:
        new = self._encode(text)
        ids += new
        marks += [answer] * len(new)


def _query(rng: np.random.Generator, sentence: str) -> str:
    """Some of a sentence's telling words, as they stand or shuffled."""
    words = [w for w in _WORD.findall(sentence) if w.lower() not in _NO_SUBJECT]
    kept = [w for w in words if rng.random() < 0.7][:12] or words[:3]
    if rng.random() < 0.5:
        kept = [kept[i] for i in rng.permutation(len(kept))]
    return " ".join(kept)
