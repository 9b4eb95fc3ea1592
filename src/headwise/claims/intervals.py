"""A mean over items with its interval, as findings give it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.stats.paired import bootstrap_mean

PLACES = 4  # digits behind the point; more would differ between machines


def interval(values: Sequence[float] | NDArray[Any]) -> tuple[float, float, float]:
    """Mean of [item] values and the two ends of its 95 % bootstrap interval, rounded."""
    mean, low, high = (round(one, PLACES) for one in bootstrap_mean(np.asarray(values, dtype=np.float64)))
    return mean, low, high
