"""Checks of task options."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.heads.errors import HeadwiseError


def count(name: str, value: int, least: int, most: int) -> int:
    """The number itself, if it lies in [least, most].

    Raises:
        HeadwiseError: It does not; `name` is the option's.
    """
    if not least <= value <= most:
        raise HeadwiseError(f"{name} must lie between {least} and {most}; got {value}")
    return value


def share(name: str, value: float) -> float:
    """The number itself, if it lies in [0, 1].

    Raises:
        HeadwiseError: It does not; `name` is the option's.
    """
    if not 0 <= value <= 1:
        raise HeadwiseError(f"{name} must lie between 0 and 1; got {value:g}")
    return value


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The word itself, if it is allowed.

    Raises:
        HeadwiseError: It is not; `name` is the option's.
    """
    if value not in allowed:
        raise HeadwiseError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    return value
