"""Texts that come from files and names, as a terminal can show them."""

from __future__ import annotations

import json
import re

LONGEST_WORD, LONGEST_LINE = 300, 5_000  # characters of a word and of a line in `one_line`
# Escape sequences of terminals: control strings (titles, links), then colours and cursor movements, then the short ones.
ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x07|\x1b\\|\x9c)|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]", re.S
)
# Other control characters but tab and line break, and marks that turn the direction of writing.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text that is safe to print, whatever file or name it comes from.

    Escape sequences, control characters (but tab and line break) and marks of direction are left out; half surrogate pairs are spelled out.
    """
    return CONTROLS.sub("", ESCAPES.sub("", text)).encode("utf-8", "backslashreplace").decode()


def one_line(message: str) -> str:
    """A message as one printable line; words and lines of absurd length lose their middle."""
    words = printable(message).split()
    return shorten(" ".join(shorten(word, LONGEST_WORD) for word in words), LONGEST_LINE)


def shorten(text: str, limit: int = 80) -> str:
    """`text` with at most `limit` characters: a longer one loses its middle."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def reason(error: Exception) -> str:
    """Why data could not be taken, for people who do not read Python: what is missing or wrong, in one line."""
    if isinstance(error, KeyError):
        return f"{shorten(repr(error.args[0]) if error.args else 'an entry')} is missing"
    if isinstance(error, json.JSONDecodeError):
        return f"no valid JSON: {error}"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, TypeError | AttributeError | IndexError):  # their own words name Python's types
        return "an entry is missing or of the wrong kind"
    return shorten(" ".join(str(error).split()), 300) or "a value cannot be read"
