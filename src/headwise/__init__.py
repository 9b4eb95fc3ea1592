"""headwise: find, test and use retrieval heads, the attention heads that carry information from a long context into the answer.

Names are loaded when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "HeadId": "headwise.core",
    "HeadScores": "headwise.core",
    "HeadSet": "headwise.core",
    "HeadwiseError": "headwise.core",
    "Prompt": "headwise.core",
    "Span": "headwise.core",
    "ablate": "headwise.attach",
    "compress": "headwise.attach",
    "head_means": "headwise.attach",
    "load_heads": "headwise.core",
    "load_model": "headwise.families",
    "observe": "headwise.attach",
    "save_heads": "headwise.core",
    "steer": "headwise.attach",
}
__all__ = [*sorted(_NAMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'headwise' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
