"""Needles, haystacks and prompts with known spans."""

from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.haystack import Haystack, Window, bundled_texts, read_texts
from headwise.prompts.needles import BASE_TEMPLATE, Needle, NeedleComposer, bundled_needles, read_needles
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Span, Turn

__all__ = [
    "BASE_TEMPLATE",
    "Haystack",
    "Needle",
    "NeedleComposer",
    "Piece",
    "PieceEncoder",
    "Prompt",
    "PromptBuilder",
    "Span",
    "Turn",
    "Window",
    "bundled_needles",
    "bundled_texts",
    "newline_ids",
    "read_needles",
    "read_texts",
]
