"""Needles, haystacks and prompts with known spans."""

from headwise.prompts.compose import BASE_TEMPLATE, NeedleComposer
from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.haystack import Haystack, Window, bundled_texts, read_texts
from headwise.prompts.needles import Needle, bundled_needles, read_needles

__all__ = [
    "BASE_TEMPLATE",
    "Haystack",
    "Needle",
    "NeedleComposer",
    "PieceEncoder",
    "Window",
    "bundled_needles",
    "bundled_texts",
    "newline_ids",
    "read_needles",
    "read_texts",
]
