"""Head types, prompts with spans, the head file, errors. Needs neither torch nor transformers.

Names are loaded when they are first used: the command line needs the errors only, and must start without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.core.errors import (
        HeadFileError,
        HeadwiseError,
        MissingExtraError,
        NoSuccessfulRunError,
        PromptError,
        UnsupportedModelError,
    )
    from headwise.core.headfile import load_heads, save_heads
    from headwise.core.heads import HeadId, HeadScores, HeadSet
    from headwise.core.prompt import Prompt, Span

_HOMES = {
    "HeadFileError": "errors",
    "HeadId": "heads",
    "HeadScores": "heads",
    "HeadSet": "heads",
    "HeadwiseError": "errors",
    "MissingExtraError": "errors",
    "NoSuccessfulRunError": "errors",
    "Prompt": "prompt",
    "PromptError": "errors",
    "Span": "prompt",
    "UnsupportedModelError": "errors",
    "load_heads": "headfile",
    "save_heads": "headfile",
}

__all__ = [
    "HeadFileError",
    "HeadId",
    "HeadScores",
    "HeadSet",
    "HeadwiseError",
    "MissingExtraError",
    "NoSuccessfulRunError",
    "Prompt",
    "PromptError",
    "Span",
    "UnsupportedModelError",
    "load_heads",
    "save_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headwise.core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headwise.core.{_HOMES[name]}"), name)
