"""How long work tells its progress, and whether it can be continued when it is stopped."""

from __future__ import annotations

from collections.abc import Callable

# report(done, total, remark): in any unit; the remark says what has come out so far.
Report = Callable[[float, float, str], None]

_kept: set[str] = set()  # places where unfinished work of this process is kept


def silent(done: float, total: float, remark: str) -> None:
    """A report that nobody reads."""


def work_is_kept(place: object) -> None:
    """Note that finished parts of unfinished work lie in `place`: the same call would continue there."""
    _kept.add(str(place))


def work_is_done(place: object) -> None:
    """Note that nothing is left to continue in `place`."""
    _kept.discard(str(place))


def can_continue() -> bool:
    """Whether this process leaves unfinished work behind that the same command would continue."""
    return bool(_kept)
