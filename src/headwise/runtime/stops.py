"""Which tokens end an answer."""

from __future__ import annotations

from headwise.models.model import Model
from headwise.prompts.encoder import newline_ids


def stop_ids(model: Model) -> frozenset[int]:
    """Tokens that end an answer of one line: everything with a line break, and those that end a text (`model.stop_ids`)."""
    return newline_ids(model.tokenizer) | model.stop_ids
