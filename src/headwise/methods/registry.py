"""Which methods are installed: those of headwise and those of any other package that registers an entry point.

Groups: `headwise.detectors` (options of a detector, see `Detector`), `headwise.presses` (compressors of a cache) and `headwise.tasks` (texts and
questions on which caches are compared, see `CacheTask`). A class is imported when it is asked for.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from headwise.heads.errors import HeadwiseError, MissingExtraError

GROUPS = {"detectors": "headwise.detectors", "presses": "headwise.presses", "tasks": "headwise.tasks"}
WORDS = {"detectors": "detector", "presses": "cache method", "tasks": "task"}


@cache
def installed(kind: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed method of a kind (`detectors`, `presses` or `tasks`), our own first."""
    found = sorted(entry_points(group=GROUPS[kind]), key=lambda entry: (not entry.value.startswith("headwise."), entry.name))
    return {entry.name: entry for entry in reversed(found)}  # a name of ours is never taken over by another package


def method_named(kind: str, name: str) -> Any:
    """The class registered under a name.

    Raises:
        HeadwiseError: No such method, with the nearest names; or its package cannot be imported.
    """
    known = installed(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known) or sorted(known)
        raise HeadwiseError(f"unknown {WORDS[kind]} {name!r}; use {', '.join(near)}")
    try:
        return known[name].load()
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:
        raise HeadwiseError(f"the method {name!r} ({known[name].value}) cannot be imported: {error}") from error
