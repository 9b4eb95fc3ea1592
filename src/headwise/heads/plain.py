"""Results as JSON can hold them, and seeds that every generator takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

LARGEST_SEED = 2**63 - 1


def plain(data: Any) -> Any:
    """Mappings, lists, arrays and numbers as plain JSON data: keys are texts, NaN and infinities null. Other values stay as they are."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, np.ndarray | np.generic):
        return plain(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def checked_number(number: Any, name: str) -> float:
    """A finite number, as a float.

    Args:
        number: What a user gave; numbers of numpy and tensors of one number count too.
        name: What a message calls it.

    Raises:
        HeadwiseError: It is no number, or not finite.
    """
    try:
        value = math.nan if isinstance(number, str | bytes) else float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # tensors of several numbers raise the last one
        value = math.nan
    if not math.isfinite(value):
        raise HeadwiseError(f"{name} must be a finite number; got {shorten(repr(number))}")
    return value


def checked_seed(seed: Any, name: str = "seed") -> int:
    """The seed as a whole number.

    Args:
        seed: What a user gave.
        name: What a message calls it.

    Returns:
        An int from 0 to `LARGEST_SEED`.

    Raises:
        HeadwiseError: It is no whole number, or out of that range; numpy and torch would fail in ways of their own.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise HeadwiseError(f"the {name} must be a whole number from 0 to {LARGEST_SEED}; got {shorten(repr(seed))}")
    return int(seed)
