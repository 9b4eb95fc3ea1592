"""The progress bar of long commands: share of the work, time left, and one changing remark, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwise.heads.progress import Report


@contextmanager
def progress(title: str, hidden: bool = False) -> Iterator[Report]:
    """Yield report(done, total, remark)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[remark]}"), console=Console(stderr=True), disable=hidden
    ) as bar:
        task = bar.add_task(title, total=None, remark="")
        yield lambda done, total, remark: bar.update(task, completed=done, total=total, remark=remark)
