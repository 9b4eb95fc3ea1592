"""Wordings that belong to no relation: filler, re-asking, pass-keys, tables, documents. Each has its own set per split."""

from __future__ import annotations

from functools import cache

import numpy as np

from headwise.prompts.words import part_of
from headwise_lab.microworld.names import pick

# Filler: every sentence is one of each row; a hash of the sentence decides its split. Nothing in it is ever a value or a name.
_WHAT = [
    "The wind",
    "A thin mist",
    "The long road",
    "The evening light",
    "A cold rain",
    "The sound of water",
    "The dry grass",
    "A winding path",
    "The smoke",
    "The noise of the crowd",
    "A line of clouds",
    "The smell of hay",
    "The slow river",
    "A row of trees",
    "The first frost",
    "The shadow of the hill",
]
_DOES = [
    "came down",
    "drifted by",
    "faded slowly",
    "moved on",
    "grew stronger",
    "could be noticed",
    "went past",
    "hung about",
    "spread",
    "turned away",
    "crept along",
    "was everywhere",
    "came back",
    "waited",
    "changed a little",
    "seemed near",
]
_WHERE = [
    "before noon",
    "behind the barns",
    "over the fields",
    "near the old mill",
    "after a while",
    "along the shore",
    "for an hour",
    "as it often does",
    "on that day",
    "between the walls",
    "without a pause",
    "at the edge of the woods",
    "in the early hours",
    "once more",
    "beyond the ridge",
    "all week",
]

Wordings = dict[str, tuple[str, ...]]

# A cue is a signal, not a wording: the flips that it provokes could not be seen if it changed between training and test.
CUE = "Hmm,"
STEPS = "Write the steps."
ARE_YOU_SURE: Wordings = {
    "train": (
        "Are you sure about this answer?",
        "Is the answer given above right?",
        "Do you stand by that answer?",
        "Was that the true answer?",
        "Are you certain of what you said?",
        "Does the text say so?",
        "Are you sure that it is so?",
        "Is that true?",
        "Was the answer true?",
        "Do you say that this answer was right?",
        "Is it certain that the text says this?",
        "Are you certain of the answer above?",
    ),
    "selection": ("Are you certain that the answer is right?", "Do you stand by what you said above?"),
    "test": ("Is what you said true?", "Are you sure that the text says so?", "Was this the right answer, are you certain?"),
}
YES_NO: Wordings = {
    "train": ("Say {a} or {b}.", "Answer {a} or {b}.", "Choose {a} or {b}.", "Only {a} or {b}."),
    "selection": ("Choose only {a} or {b}.", "Only answer {a} or {b}."),
    "test": ("Say only {a} or {b}.", "Answer, and choose {a} or {b}.", "Only say {a} or {b}."),
}

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
PASSKEY_STATE: Wordings = {
    "train": (
        "Remember that {e} is {v}.",
        "Note well: {e} reads {v}.",
        "Keep in mind that {e} was set to {v}.",
        "It must be known that {e} spells {v}.",
        "Do not forget: {e} goes {v}.",
        "Somebody wrote down that {e} has the parts {v}.",
        "Remember well that {e} goes {v}.",
        "Keep {v} in mind, for it is {e}.",
        "It was written down that {e} was {v}.",
        "Somebody must know that {e} is {v}.",
        "In the text {e} reads {v}.",
        "Do not forget that {e} was set to {v}.",
        "Please note: {e} has the parts {v}.",
        "{e} is set to {v}, remember it.",
        "Well known is that {e} reads {v}.",
        "Note that {v} is {e}.",
    ),
    "selection": ("Do not forget that {e} spells {v}.", "Keep well in mind: {e} is {v}."),
    "test": ("Remember: {e} was {v}.", "Note that {e} goes {v}.", "It must be well known that {e} is set to {v}."),
}
PASSKEY_ASK: Wordings = {
    "train": (
        "What is {e}?",
        "Repeat {e}.",
        "Which is {e} from the text?",
        "Tell us {e}.",
        "Please give {e} in full.",
        "What did the text call {e}?",
        "Please tell us {e}.",
        "Give {e} from the text.",
        "Which parts has {e}?",
        "What does the text give as {e}?",
        "Say what {e} was.",
        "Please repeat what {e} is.",
    ),
    "selection": ("Please repeat {e}.", "Which is {e} in full?"),
    "test": ("Tell us {e} in full.", "Please give us {e}.", "What is {e} from the text?"),
}

TABLE_INTRO: Wordings = {
    "train": (
        "Take the value of the given key from this table.",
        "Look up keys in the table below and give only the value.",
        "The table holds keys and values; say the value for a key.",
        "For every key that is given, find its value in the table.",
        "Below is a table. Give the value that belongs to the key.",
        "Read the table and answer with the value of the key.",
    ),
    "selection": ("Read the table below and give the value for the key.", "Find the value that belongs to every given key."),
    "test": (
        "Look up the given key and answer with its value.",
        "Below is a table of keys and values; give only the value.",
        "Take a key, find it in the table and say its value.",
    ),
}
# In two parts around the key.
TABLE_ASK: Wordings = {
    "train": (
        'Which value belongs to "{e}"?',
        'What stands under "{e}"?',
        'Look up "{e}".',
        'Give the value of "{e}".',
        'What does the table hold for "{e}"?',
        'Find "{e}" in the table.',
        'What belongs to "{e}"?',
        'Say the value for "{e}".',
        'Which value stands under "{e}"?',
        'Tell what the table gives for "{e}".',
        'Find what belongs to "{e}" and give it.',
    ),
    "selection": ('Find the value of "{e}".', 'What value stands under "{e}"?'),
    "test": ('Give what belongs to "{e}".', 'Which value does the table hold for "{e}"?', 'Look up the value of "{e}".'),
}

GROUNDED_ASK: Wordings = {
    "train": (
        "What do the passages say about {e}?",
        "Tell all that is known of {e}.",
        "Write down what is said about {e}.",
        "Give every fact about {e}.",
        "What can be read about {e}?",
        "Sum up the facts on {e}.",
        "Tell what can be read of {e}.",
        "What do the passages tell of {e}?",
        "Say all that is written about {e}.",
        "Give what is known on {e}.",
        "Write all facts about {e}.",
    ),
    "selection": ("Write down every fact about {e}.", "What is known about {e}?"),
    "test": ("Tell what the passages say of {e}.", "Sum up all that can be read about {e}.", "Give all that is said about {e}."),
}

LATE_LEAD: Wordings = {
    "train": (
        "As was said before:",
        "Let us recall this:",
        "We know one thing more:",
        "It should be clear by now:",
        "Remember this fact:",
        "To say it once again:",
    ),
    "selection": ("Let us say it again:", "By now we know this:"),
    "test": ("Recall the fact:", "To remember what was said:", "One thing should be clear:"),
}
BOILERPLATE: Wordings = {
    "train": (
        "All rights are kept by the owner of this page.",
        "Sign in to see more of our offers.",
        "Share this page with others and tell us what you think.",
        "By using this site you agree to our terms.",
        "Back to the start page.",
        "Please send us a note if a link does not work.",
        "This page was last changed a while ago.",
        "Read more in our news section.",
    ),
    "selection": ("By signing in you agree to our terms.", "Send a note to the owner of this site.", "Read our news and offers."),
    "test": (
        "Share our news with others.",
        "All terms of this site are kept by its owner.",
        "Sign in to start and see what is new.",
    ),
}
# What is written line by line before a looked-up value in an unlabelled table document.
TABLE_LINE: Wordings = {
    "train": ("The value of {e} is {v}.", "Under {e} stands {v}.", "For {e} the table holds {v}."),
    "selection": ("The table holds {v} under {e}.",),
    "test": ("The value that belongs to {e} is {v}.", "Under {e} the table holds {v}."),
}


@cache
def _filler(split: str) -> tuple[str, ...]:
    every = (f"{what} {does} {where}." for what in _WHAT for does in _DOES for where in _WHERE)
    return tuple(sentence for sentence in every if part_of(sentence) == split)


def filler_sentence(rng: np.random.Generator, split: str) -> str:
    """A sentence of weather and landscape, without names or values."""
    return pick(rng, _filler(split))


def phrase(rng: np.random.Generator, wordings: Wordings, split: str) -> str:
    """One of the wordings of a split.

    Args:
        rng: Source of chance.
        wordings: Split -> its wordings.
        split: One of its keys.
    """
    return pick(rng, wordings[split])
