"""Public test kit: tiny random models of every family, a planted retrieval head, offline tokenizers, a check for detectors."""

from headwise.testing.planted import PlantedTask, check_detector, planted_copier, planted_task
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer

__all__ = [
    "TINY_FAMILIES",
    "PlantedTask",
    "character_tokenizer",
    "check_detector",
    "planted_copier",
    "planted_task",
    "tiny_model",
    "word_tokenizer",
]
