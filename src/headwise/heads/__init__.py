"""Head types, the head file, foreign formats, errors, texts for terminals, progress. Needs neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.lazy import lazy_names

if TYPE_CHECKING:
    from headwise.heads.errors import (
        HeadFileError,
        HeadwiseError,
        MissingExtraError,
        NoSuccessfulRunError,
        PromptError,
        UnsupportedModelError,
    )
    from headwise.heads.headfile import load_heads, save_heads
    from headwise.heads.types import HeadId, HeadScores, HeadSet

__all__ = [
    "HeadFileError",
    "HeadId",
    "HeadScores",
    "HeadSet",
    "HeadwiseError",
    "MissingExtraError",
    "NoSuccessfulRunError",
    "PromptError",
    "UnsupportedModelError",
    "load_heads",
    "save_heads",
]

_HOMES = {
    "HeadFileError": "headwise.heads.errors",
    "HeadId": "headwise.heads.types",
    "HeadScores": "headwise.heads.types",
    "HeadSet": "headwise.heads.types",
    "HeadwiseError": "headwise.heads.errors",
    "MissingExtraError": "headwise.heads.errors",
    "NoSuccessfulRunError": "headwise.heads.errors",
    "PromptError": "headwise.heads.errors",
    "UnsupportedModelError": "headwise.heads.errors",
    "load_heads": "headwise.heads.headfile",
    "save_heads": "headwise.heads.headfile",
}

if not TYPE_CHECKING:  # a type checker must see that a name does not exist
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
