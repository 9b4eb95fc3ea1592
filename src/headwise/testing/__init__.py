"""Public test kit: tiny random models of every family, a planted retrieval head, a character tokenizer."""

from headwise.testing.tiny import TINY_FAMILIES, tiny_model

__all__ = ["TINY_FAMILIES", "tiny_model"]
