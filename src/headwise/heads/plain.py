"""Results as JSON can hold them, texts as a terminal can show them, and seeds that every generator takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError

LONGEST_WORD, LONGEST_TEXT = 300, 20_000  # characters of one word, and of a whole text, that `printable` shows
LARGEST_SEED = 2**63 - 1
# Escape sequences of terminals: control strings (titles, links), then colours and cursor movements, then the short ones.
ESCAPES = re.compile(r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]", re.S)
# Other control characters but tab and line break, and marks that turn the direction of writing.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(data: Any) -> Any:
    """Mappings, lists, arrays and numbers as plain JSON data: keys are texts, NaN and infinities null. Other values stay as they are."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, np.ndarray | np.generic):
        return plain(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def printable(text: str) -> str:
    """A text that is safe to print, whatever file or name it comes from.

    Escape sequences and control characters are left out (tabs and line breaks stay), half surrogate pairs are spelled out, and words or texts of
    absurd length lose their middle.
    """
    text = CONTROLS.sub("", ESCAPES.sub("", text)).encode("utf-8", "backslashreplace").decode()
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: shorten(word[0], LONGEST_WORD), text)
    return shorten(text, LONGEST_TEXT)


def shorten(text: str, limit: int = 80) -> str:
    """`text` with at most `limit` characters: a longer one loses its middle."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def checked_seed(seed: Any, name: str = "seed") -> int:
    """The seed as a whole number.

    Raises:
        HeadwiseError: It is no whole number, or not from 0 to 2^63 - 1; numpy and torch would fail in ways of their own.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise HeadwiseError(f"the {name} must be a whole number from 0 to {LARGEST_SEED}; got {shorten(repr(seed))}")
    return int(seed)
