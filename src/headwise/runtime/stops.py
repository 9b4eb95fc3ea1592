"""Which tokens end an answer."""

from __future__ import annotations

from headwise.models.model import Model
from headwise.prompts.encoder import newline_ids


def stop_ids(model: Model) -> frozenset[int]:
    """Tokens that end an answer: everything with a line break, and the model's end-of-text tokens."""
    ends = {model.tokenizer.eos_token_id}
    generation = getattr(model.hf, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, list | tuple) else {configured}
    return newline_ids(model.tokenizer) | {end for end in ends if end is not None}
