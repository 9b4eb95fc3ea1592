"""Books for training the lab models: reading, the held-out split, and one flat array of token ids.

The books are the 229 public-domain texts of `books-large` (four `.jsonl.xz` files, fields `author`, `title`, `text`).
Everything that the package evaluates on is held out here: the fourth file and the three haystack books.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TRAIN_FILES = ("books-0.jsonl.xz", "books-1.jsonl.xz", "books-2.jsonl.xz")
HELD_OUT_FILE = "books-3.jsonl.xz"
HAYSTACK_TITLES = ("frankenstein", "walden", "alice's adventures in wonderland")


def clean(text: str) -> str:
    """Unix line ends, one blank line between paragraphs, typographic quotes and dashes as ASCII."""
    for old, new in (("\r\n", "\n"), ("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("—", "--"), ("##", "")):
        text = text.replace(old, new)
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    return "\n".join(p for p in paragraphs if p)


def _books(path: Path) -> Iterator[tuple[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            book = json.loads(line)
            yield book["title"], clean(book["text"])


def _is_haystack(title: str) -> bool:
    return title.casefold().replace("’", "'").startswith(HAYSTACK_TITLES)


def training_books(folder: Path) -> Iterator[str]:
    """Texts that may be trained on: three files without the haystack books."""
    for name in TRAIN_FILES:
        yield from (text for title, text in _books(folder / name) if not _is_haystack(title))


def held_out_books(folder: Path) -> Iterator[str]:
    """Texts for evaluation only."""
    yield from (text for _, text in _books(folder / HELD_OUT_FILE))


def tokenize_books(books: Iterator[str], tokenizer, target: Path) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Encode the books one after another (BOS between them) and keep the ids in `target` (uint16 .npy)."""
    if not target.exists():
        parts = [np.asarray([tokenizer.token_to_id("<s>"), *tokenizer.encode(text).ids], dtype=np.uint16) for text in books]
        np.save(target, np.concatenate(parts))
    return np.load(target, mmap_mode="r")
