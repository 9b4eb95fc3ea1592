"""Re-asking after an answer: "are you sure?", yes or no, with a cue that provokes flips (our unwanted-uncertainty card, section 6)."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.microworld.facts import Page, Scene, filler_for, lay_out
from headwise.prompts.microworld.names import pick
from headwise.prompts.microworld.options import count, share
from headwise.prompts.microworld.phrases import ARE_YOU_SURE, CUE, YES_NO, phrase
from headwise.prompts.microworld.relations import relations
from headwise.prompts.microworld.text import Example, Piece, Pieces, Turn

FLIP = 0.3


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 6,
    words: int = 30,
    right: bool | None = None,
    cue: bool | None = None,
    flip: float | None = None,
    filler: Any = None,
) -> Example:
    """A needle question with a right or wrong answer, then whether that answer was right.

    right, cue: fix them; drawn with probability 0.5 each if None. A wrong answer is the value of another entity in the same relation.
    flip: probability that the target is No although the answer is right and there is a cue; None means 0.3 in train, 0 elsewhere.
    info: facts, gold, given (the answer of turn 1), right, cue, flipped, target (Yes or No), order of the options, answer (= target).
    """
    share("flip", flip or 0.0)
    right = bool(rng.random() < 0.5) if right is None else right
    cue = bool(rng.random() < 0.5) if cue is None else cue
    rate = (FLIP if split == "train" else 0.0) if flip is None else flip
    flipped = bool(right and cue and rng.random() < rate)
    scene = Scene(rng, split)
    target = scene.other()
    rival = scene.fact(relations()[target.relation])
    if rival is None:
        raise RuntimeError(f"no second value for the relation {target.relation}")
    others = [scene.distractor(target, 0.6) for _ in range(count("facts", facts, 1, 400) - 1)]
    page = Page(scene)
    numbers = lay_out(page, [target, rival, *others], filler_for(scene, words, filler))
    first = page.turn(numbers[target])
    given = target.value if right else rival.value
    if not right:
        first = Turn(first.ask, (Piece(" " + given),), alias=first.alias, scored=False)
    reply = "Yes" if right and not flipped else "No"
    order = ("Yes", "No") if rng.random() < 0.5 else ("No", "Yes")
    second = Turn(_challenge(rng, split, cue, order), (Piece(" " + reply),), alias=first.alias)
    info = {"gold": (numbers[target],), "given": given, "right": right, "cue": cue, "flipped": flipped, "order": order}
    return page.example("reask", [first, second], **info, target=reply)


def _challenge(rng: np.random.Generator, split: str, cue: bool, order: tuple[str, str]) -> Pieces:
    options = pick(rng, YES_NO[split]).replace("{a}", order[0]).replace("{b}", order[1])
    sure = phrase(rng, ARE_YOU_SURE, split)
    if cue:
        sure = sure[0].lower() + sure[1:]
    asked = [Piece(" " + sure, ("challenge",)), Piece(" " + options, ("options",))]
    return tuple([Piece(" " + CUE, ("cue",)), *asked] if cue else asked)
