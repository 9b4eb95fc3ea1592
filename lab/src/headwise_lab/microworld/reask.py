"""Re-asking after an answer: "are you sure?", yes or no, with a cue that provokes flips (our unwanted-uncertainty card, section 6)."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.prompt import Piece
from headwise_lab.microworld.facts import Fact, Page, Scene, filler_for, lay_out
from headwise_lab.microworld.names import pick
from headwise_lab.microworld.options import count, share
from headwise_lab.microworld.phrases import ARE_YOU_SURE, CUE, YES_NO, phrase
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.texts import Example, Exchange, Pieces

FLIP = 0.3


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 6,
    words: int = 30,
    right: bool | None = None,
    cue: bool | None = None,
    flip: float | None = None,
    rounds: int = 1,
    filler: Any = None,
) -> Example:
    """A needle question with a right or wrong answer, then whether that answer was right.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        facts: Facts besides the one asked about in the last round, from 1 to 400; each round brings two of its own.
        words: Of filler.
        right: Whether the last round's first answer is right; drawn with probability 0.5 if None. A wrong answer is the value of
            another entity in the same relation.
        cue: Whether the last round has the cue; drawn with probability 0.5 if None.
        flip: Probability that the target is No although the answer is right and there is a cue; None means 0.3 in train, 0
            elsewhere.
        rounds: Pairs of turns, each about another fact, from 1 to 10.
        filler: (rng, words) -> sentences to use instead of ours.

    Returns:
        An example whose info (of the last round) has facts, gold, given (the answer of its first turn), right, cue, flipped,
        target (Yes or No), order of the options and answer (= target).

    Raises:
        HeadwiseError: Options out of range.
    """
    rate = share("flip", (FLIP if split == "train" else 0.0) if flip is None else flip)
    count("rounds", rounds, 1, 10)
    scene = Scene(rng, split)
    pairs = [_pair(scene) for _ in range(rounds)]
    others = [scene.distractor(pairs[-1][0], 0.6) for _ in range(max(count("facts", facts, 1, 400) + 1 - 2 * rounds, 0))]
    page = Page(scene)
    numbers = lay_out(page, [*(fact for pair in pairs for fact in pair), *others], filler_for(scene, words, filler))
    turns: list[Exchange] = []
    info: dict[str, Any] = {}
    for i, pair in enumerate(pairs, 1):
        fixed = (right, cue) if i == rounds else (None, None)
        made, info = _round(page, pair, numbers[pair[0]], fixed, rate)
        turns += made
    return page.example("reask", turns, **info)


def _pair(scene: Scene) -> tuple[Fact, Fact]:
    """A fact to ask about, and one of the same relation whose value is the wrong answer."""
    target = scene.other()
    rival = scene.fact(relations()[target.relation])
    if rival is None:
        raise RuntimeError(f"no second value for the relation {target.relation}")
    return target, rival


def _round(
    page: Page, pair: tuple[Fact, Fact], number: int, fixed: tuple[bool | None, bool | None], rate: float
) -> tuple[list[Exchange], dict[str, Any]]:
    """The question with its answer, the challenge with its reply, and what is true of them."""
    rng = page.rng
    right, cue = (bool(rng.random() < 0.5) if value is None else value for value in fixed)
    flipped = bool(right and cue and rng.random() < rate)
    target, rival = pair
    first = page.turn(number)
    given = target.value if right else rival.value
    if not right:
        first = Exchange(first.ask, (Piece(" " + given),), alias=first.alias, scored=False)
    reply = "Yes" if right and not flipped else "No"
    order = ("Yes", "No") if rng.random() < 0.5 else ("No", "Yes")
    second = Exchange(_challenge(rng, page.split, cue, order), (Piece(" " + reply),), alias=first.alias)
    info = {"gold": (number,), "given": given, "right": right, "cue": cue, "flipped": flipped, "order": order, "target": reply}
    return [first, second], info


def _challenge(rng: np.random.Generator, split: str, cue: bool, order: tuple[str, str]) -> Pieces:
    options = pick(rng, YES_NO[split]).replace("{a}", order[0]).replace("{b}", order[1])
    sure = phrase(rng, ARE_YOU_SURE, split)
    if cue:
        sure = sure[0].lower() + sure[1:]
    asked = [Piece(" " + sure, ("challenge",)), Piece(" " + options, ("options",))]
    return tuple([Piece(" " + CUE, ("cue",)), *asked] if cue else asked)
