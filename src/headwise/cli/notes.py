"""Lines on standard error about a result that stands. A command that ends in an error says that error and nothing else."""

from __future__ import annotations

import sys

_held: list[str] = []


def tell(note: str) -> None:
    """One line on standard error about a result that stands."""
    from headwise.heads.text import one_line

    sys.stderr.write(f"headwise: {one_line(note)}\n")


def hold(note: str) -> None:
    """Keep a line until work has begun (`tell_held`): what the command was given may still be refused."""
    _held.append(note)


def tell_held() -> None:
    """Tell what was held: the first piece of work is done, or the command has ended well."""
    while _held:
        tell(_held.pop(0))


def forget_held() -> None:
    """The command ends in an error, which is all that is said."""
    _held.clear()
