"""How long work tells its progress."""

from __future__ import annotations

from collections.abc import Callable

# report(done, total, remark): in any unit; the remark says what has come out so far.
Report = Callable[[float, float, str], None]


def silent(done: float, total: float, remark: str) -> None:
    """A report that nobody reads."""


def part(report: Report, number: int, parts: int, name: str) -> Report:
    """What the part `number` (from 0) of several equal parts of some work reports to, in any unit of its own."""

    def told(done: float, total: float, remark: str) -> None:
        share = min(done / total, 1.0) if total else 0.0
        report(number + share, parts, f"{name}: {remark}" if remark else name)

    return told
