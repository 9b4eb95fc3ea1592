"""Results as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(data: Any) -> Any:
    """Mappings, lists, arrays and numbers as plain JSON data: keys are texts, NaN and infinities null. Other values stay as they are."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, np.ndarray | np.generic):
        return plain(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data
