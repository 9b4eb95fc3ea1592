"""Options of a method: fields of a frozen dataclass, each with a line of help, that the dataclass checks when it is made.

Nothing here needs torch or numpy, so that `headwise detect --help` can list every option at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from headwise.heads.errors import HeadwiseError

T = TypeVar("T")
COPY_RULES = ("set", "multiset")  # how copied tokens are counted, see `headwise.maths.copy.copy_score`
SPANS = ("official", "query", "last", "query_last")  # rows behind passages whose attention counts, see `headwise.runtime.passages.Scoring`


def option(default: T, text: str, shown: str | None = None) -> T:
    """A dataclass field with help; Python and the command line use the same one.

    Args:
        default: Default value.
        text: One line for `--help`.
        shown: What `--help` names as the default where the value itself says too little (None: the value).

    Returns:
        The field. It is typed as its default, so that type checkers see the option's own type.
    """
    made: T = field(default=default, metadata={"help": text, "shown": shown})
    return made


def set_option(options: Any, name: str, value: Any) -> None:
    """Replace a field of a frozen dataclass by its checked form; for `__post_init__` only."""
    object.__setattr__(options, name, value)


def check_choice(name: str, given: str, known: Iterable[str]) -> None:
    """Raise `HeadwiseError` unless an option is one of the words it may be.

    Args:
        name: Of the option, for the message.
        given: Its value.
        known: What is allowed.
    """
    words = list(known)
    if given not in words:
        listed = " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"
        raise HeadwiseError(f"unknown {name} {given!r}; use {listed}")


def check_least(least: int, **given: int | None) -> None:
    """Raise `HeadwiseError` for a number that is not whole or below `least`; None stands for a default and passes."""
    for name, value in given.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise HeadwiseError(f"{name} must be a whole number of at least {least}; got {value!r}")


def check_seed(seed: int) -> None:
    """Raise `HeadwiseError` for a seed that numpy would refuse with a traceback."""
    check_least(0, seed=seed)


def whole_numbers(name: str, given: Any) -> tuple[int, ...] | None:
    """Positive whole numbers from one number or several.

    Args:
        name: Of the option, for the message.
        given: A number, an iterable of numbers, or None.

    Returns:
        Each number once, in the order given; None stays None.

    Raises:
        HeadwiseError: Anything else, or none at all.
    """
    if given is None:
        return None
    if isinstance(given, int):
        given = (given,)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise HeadwiseError(f"{name} must be positive whole numbers, like [512, 1024]; got {given!r}")
    found = tuple(dict.fromkeys(given))
    if not found or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found):
        raise HeadwiseError(f"{name} must be positive whole numbers, like [512, 1024]; got {list(found)!r}")
    return found


def path_or(given: Any) -> Any:
    """A text as a path, another iterable as a tuple; a path or None as it is."""
    if isinstance(given, str):
        return Path(given)
    return given if given is None or isinstance(given, Path) else tuple(given)
