"""Lines on standard error about a result that stands. A command that ends in an error says that error and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

held: list[str] = []  # until work has begun: what a command was given may still be refused; an error empties it


def tell(note: str) -> None:
    """One line on standard error about a result that stands."""
    from headwise.heads.text import one_line

    sys.stderr.write(f"headwise: {one_line(note)}\n")


def hold(note: str) -> None:
    """Keep a line until work has begun (`tell_held`)."""
    held.append(note)


def tell_held() -> None:
    """Tell what was held: the first piece of work is done, or the command has ended well."""
    while held:
        tell(held.pop(0))


def tell_shared_places(found: Mapping[str, Any]) -> None:
    """Say where several depths of a needle grid were one place. found: a result, or the provenance of scores, with `shared_places`."""
    told = [f"{row['depths']} depths share {row['places']} places in {row['length']} tokens" for row in found["shared_places"]]
    tell(f"{', '.join(told)}: needles stand between sentences only; longer contexts have more places")
