"""Pictures beside results: drawn where matplotlib is installed, left out with one line where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from headwise.heads.errors import MissingExtraError


def can_draw() -> bool:
    """Whether pictures can be drawn; if not, one line on standard error says what to install."""
    from headwise.report.canvas import require_matplotlib

    try:
        require_matplotlib()
    except MissingExtraError as error:
        sys.stderr.write(f"headwise: no picture is drawn: {error}\n")
        return False
    return True


def draw(write: Callable[[Path], None], path: Path) -> str | None:
    """Write the picture of a result that stands without it.

    Args:
        write: draws and writes, one of `headwise.report.figures` with its data.
        path: of the picture.

    Returns:
        The path as text, or None if the extra `report` is not installed.
    """
    if not can_draw():
        return None
    write(path)
    return str(path)


def picture_line(picture: str | None, name: str = "picture") -> list[str]:
    """The line that tells where the picture is; none without one."""
    return [] if picture is None else [f"{name:<10} {picture}"]
