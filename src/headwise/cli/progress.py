"""How long commands tell their progress on standard error: a bar on a terminal, a few lines elsewhere, and an estimate before long work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headwise.cli.notes import held, tell_held
from headwise.heads.progress import silent

if TYPE_CHECKING:
    from rich.console import Console

    from headwise.heads.progress import Report

FOUND = 0.05  # seconds; work that is reported faster than this at the start was found in a run directory
LOADING = 2.0  # seconds after which work counts as done now, however fast it comes
MEASURED = 1.0  # seconds of work on which an estimate may stand
SHOWN = "HEADWISE_PROGRESS"  # environment: 1 tells progress beside `--json` too; `headwise demo` sets it for its steps
LONG = 60.0  # seconds; shorter work needs no estimate
EVERY, SHARE, SILENCE = (
    5.0,
    0.1,
    60.0,
)  # a line: after so many seconds and so much more work, or after so many seconds in any case


class Pace:
    """How fast work goes, counted from the first piece that was really done: what a resumed run finds ready says nothing about speed.

    Attributes:
        done: Units of work that are done.
        total: Units of work in all.
    """

    def __init__(self) -> None:
        self.done, self.total = 0.0, 0.0
        self._start = self._last = time.monotonic()
        self._base: tuple[float, float] | None = None  # (time, done) from which on the speed is measured

    def update(self, done: float, total: float) -> None:
        """Take a report."""
        now = time.monotonic()
        if self._base is None and (now - self._last >= FOUND or now - self._start >= LOADING):
            self._base = self._last, self.done
        self.done, self.total, self._last = done, total, now

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take; None while nothing is known."""
        if self._base is None or self.done <= self._base[1]:
            return None
        return (self._last - self._base[0]) / (self.done - self._base[1]) * max(0.0, self.total - self.done)

    @property
    def measured(self) -> float:
        """Seconds of work behind `left`."""
        return 0.0 if self._base is None else self._last - self._base[0]

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        return self.done / self.total if self.total else 0.0


class Teller:
    """Says an estimate once if the work is long, and, where there is no terminal, a line now and then."""

    def __init__(self, title: str, console: Console) -> None:
        self.pace, self._title, self._console = Pace(), title, console
        self._estimated, self._told, self._told_share = False, time.monotonic(), 0.0
        self._lines = 0

    def report(self, done: float, total: float, remark: str) -> None:
        """Take a report and say what is due."""
        self.pace.update(done, total)
        left = self.pace.left
        if not self._estimated and left is not None and self.pace.measured >= MEASURED:
            self._estimated = True
            if left >= LONG:
                self._say(f"about {duration(left)} left, measured on the first {self.pace.measured:.0f} seconds of work")
        if not self._console.is_terminal:
            self._line(left, remark)

    def _line(self, left: float | None, remark: str) -> None:
        now, share = time.monotonic(), self.pace.share
        waited = now - self._told
        due = (waited >= EVERY and share - self._told_share >= SHARE) or waited >= SILENCE
        if due or (share >= 1 and self._lines):
            self._told, self._told_share, self._lines = now, share, self._lines + (share < 1)
            rest = f", {duration(left)} left" if left and share < 1 else ""
            self._say(f"{share:.0%}{rest}{', ' if remark else ''}{remark}")
            if share >= 1:
                self._lines = 0  # the last line is said once

    def _say(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(title: str, hidden: bool = False) -> Iterator[Report]:
    """Show how far a long command is, and what was held back until its work began (see `notes.hold`).

    Args:
        title: What is being done, in a word or two.
        hidden: Show nothing.

    Yields:
        report(done, total, remark): call it whenever a piece of work is done. The unit is free, but the same for all of the work.
    """
    if hidden and os.environ.get(SHOWN) != "1":
        yield _telling(silent)
        return
    from rich.console import Console

    console = Console(stderr=True)
    teller = Teller(title, console)
    if not console.is_terminal:
        yield _telling(teller.report)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[remark]}"), console=console) as bar:
        task = bar.add_task(title, total=None, remark="")

        def report(done: float, total: float, remark: str) -> None:
            bar.update(task, completed=done, total=total, remark=remark)
            teller.report(done, total, remark)

        yield _telling(report)


def _telling(report: Report) -> Report:
    """The report; a piece of work that is done tells what was held back."""

    def told(done: float, total: float, remark: str) -> None:
        if done > 0 and held:
            tell_held()
        report(done, total, remark)

    return told


def duration(seconds: float) -> str:
    """A length of time in words: `40 seconds`, `22 minutes`, `1.5 hours`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
