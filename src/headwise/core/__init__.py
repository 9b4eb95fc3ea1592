"""Head types, prompts with spans, the head file, errors. Needs neither torch nor transformers."""

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
