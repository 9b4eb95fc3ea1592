"""Real documents: passages of novels, articles of WikiText-2, problems of GSM8K, and code of the Python installation that runs this."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from headwise.claims.experiment import Bench, NotTestable
from headwise.prompts.haystack import bundled_texts

SHORT = (60, 200)  # words of a passage, evenly on a log scale: what two models read
WORDS = (80, 400)  # what is chosen from
BUNDLED = ("Alice", "Frankenstein", "Walden")  # their sentences are values of proxy prompts
TITLE = re.compile(r"^ = [^=].* = $")


def read(path: Path) -> str:
    """A packed text."""
    return gzip.decompress(path.read_bytes()).decode()


def passages(text: str, rng: np.random.Generator, limits: tuple[int, int]) -> Iterator[str]:
    """Whole lines, as many as reach a drawn number of words."""
    lines: list[str] = []
    words, wanted = 0, 0.0
    for line in text.splitlines():
        wanted = wanted or float(np.exp(rng.uniform(*np.log(limits))))
        lines.append(line)
        words += len(line.split())
        if words >= wanted:
            yield "\n".join(lines).strip()
            lines, words, wanted = [], 0, 0.0


def articles(text: str) -> Iterator[str]:
    """Articles of WikiText from title to title."""
    found: list[str] = []
    for line in text.splitlines():
        if TITLE.match(line) and found:
            yield "\n".join(found).strip()
            found = []
        found.append(line.strip())
    yield "\n".join(found).strip()


def novels(folder: Path) -> Iterator[str]:
    """Texts of the books that are kept for evaluation."""
    with lzma.open(folder / "books-3.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            book = json.loads(line)
            if not any(name in book["title"] for name in BUNDLED):
                yield book["text"]


def problems(folder: Path) -> list[str]:
    """Problems of GSM8K's test part with their solutions."""
    rows = [json.loads(line) for line in read(folder / "test.jsonl.gz").splitlines()]
    return [f"{row['question']}\n{row['answer']}" for row in rows]


def library() -> Iterator[str]:
    """Modules of Python's standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text("utf-8", errors="replace")


def short_corpus(bench: Bench, count: int) -> dict[str, list[str]]:
    """`count` documents of each domain, drawn evenly from all passages of 60 words or more."""
    rng = np.random.default_rng([bench.seed, 17])
    sources = {
        "novels": novels(bench.folder("books-large")),
        "wikitext": articles(read(bench.folder("wikitext-2") / "test.txt.gz")),
        "code": library(),
    }
    pieces = {name: list(chain.from_iterable(passages(text, rng, SHORT) for text in texts)) for name, texts in sources.items()}
    pieces["gsm8k"] = problems(bench.folder("gsm8k"))
    # A last line can be very long (a whole paragraph), so passages are held to twice the words at most.
    kept = {name: [text for text in texts if text and len(text.split()) <= 2 * SHORT[1]] for name, texts in pieces.items()}
    return _drawn(dict(sorted(kept.items())), rng, count)


def long_corpus(bench: Bench, count: int) -> dict[str, list[str]]:
    """`count` documents of each domain, whole articles among them (of which there are 62)."""
    rng = np.random.default_rng(bench.seed)
    pieces = {
        "novels": [piece for text in novels(bench.folder("books-large")) for piece in passages(text, rng, WORDS)],
        "wikitext": list(articles(read(bench.folder("wikitext-2") / "test.txt.gz"))),
        "gsm8k": problems(bench.folder("gsm8k")),
        "code": [piece for text in library() for piece in passages(text, rng, WORDS)],
    }
    return _drawn({name: [text for text in texts if text] for name, texts in pieces.items()}, rng, count)


def _drawn(texts: dict[str, list[str]], rng: np.random.Generator, count: int) -> dict[str, list[str]]:
    empty = [name for name, found in texts.items() if not found]
    if empty:
        raise NotTestable(f"no text of the domain {empty[0]} was found; code needs a Python whose standard library lies in files")
    return {name: [found[i] for i in sorted(rng.permutation(len(found))[:count])] for name, found in texts.items()}


def book_passages(count: int, seed: int, limits: tuple[int, int] = WORDS) -> list[str]:
    """`count` passages of the bundled books."""
    rng = np.random.default_rng([seed, 23])
    every = [piece for text in bundled_texts() for piece in passages(text, rng, limits) if len(piece.split()) <= 2 * limits[1]]
    return [every[i] for i in sorted(rng.permutation(len(every))[:count])]
