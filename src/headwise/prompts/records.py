"""Records that are to be written as JSON: how a list of them looks, and how much of it an answer gives."""

from __future__ import annotations

import re
from collections.abc import Mapping

RECORD = re.compile(r'\{\s*"name"\s*:\s*"([^"{}]*)"\s*,\s*"number"\s*:\s*"?(\d+)"?\s*\}')


def as_json(records: Mapping[str, str]) -> str:
    """`[{"name": "Ada", "number": 123}, ...]` on one line, from name -> digits."""
    return "[" + ", ".join(f'{{"name": "{name}", "number": {number}}}' for name, number in records.items()) + "]"


def read_records(said: str) -> set[tuple[str, str]]:
    """(name, digits) of every complete record in an answer; one that was cut off at the end counts as not written."""
    return {(name.strip(), number) for name, number in RECORD.findall(said)}


def overlap_of_records(said: str, wanted: Mapping[str, str]) -> float:
    """Intersection over union of the records in an answer and those wanted, in [0, 1]: what is missing counts, and so does what is invented.

    Args:
        said: An answer.
        wanted: Name -> digits, at least one.
    """
    found, gold = read_records(said), set(wanted.items())
    return len(found & gold) / len(found | gold)
