"""How long work tells its progress."""

from __future__ import annotations

from collections.abc import Callable

# report(done, total, remark): in any unit; the remark says what has come out so far.
Report = Callable[[float, float, str], None]


def silent(done: float, total: float, remark: str) -> None:
    """A report that nobody reads."""
