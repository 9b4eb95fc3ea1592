"""The micro-world: a seeded generator of short texts and questions whose every span is known. See docs/microworld.md."""

from headwise.prompts.prompt import Piece
from headwise.prompts.words import SPLITS
from headwise_lab.microworld.facts import Fact
from headwise_lab.microworld.grounded import corrupted
from headwise_lab.microworld.registry import TASKS, make_example
from headwise_lab.microworld.relations import Relation, relations
from headwise_lab.microworld.support import Claim, check_support
from headwise_lab.microworld.texts import Example, Exchange, answer_spans, to_prompt, to_row, word_cache
from headwise_lab.microworld.world import World, make_world

__all__ = [
    "SPLITS",
    "TASKS",
    "Claim",
    "Example",
    "Exchange",
    "Fact",
    "Piece",
    "Relation",
    "World",
    "answer_spans",
    "check_support",
    "corrupted",
    "make_example",
    "make_world",
    "relations",
    "to_prompt",
    "to_row",
    "word_cache",
]
