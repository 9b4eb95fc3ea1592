"""Two-hop questions, answered directly or with the steps written out."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise.prompts.microworld.chain import chain_turn, draw_chain, tell_first
from headwise.prompts.microworld.facts import Page, Scene, filler_for
from headwise.prompts.microworld.options import count
from headwise.prompts.microworld.text import Example


def make(
    rng: np.random.Generator, split: str, facts: int = 6, words: int = 30, steps: bool = False, filler: Any = None
) -> Example:
    """Two facts that belong together, scattered among `facts` others with decoys first, and a question that needs both.

    words, filler: as in the needle task. steps: the question asks for them (span `mode`) and the answer writes both facts.
    info: facts, gold (numbers of both), bridge, answer. Spans of the answer: step/1, step/2, final.
    """
    scene = Scene(rng, split)
    chain = draw_chain(scene, decoys=count("facts", facts, 0, 400))
    others = [*chain.decoys, *(scene.other() for _ in range(facts - len(chain.decoys)))]
    items = [chain.first, chain.second, *others, *filler_for(scene, words, filler)]
    page, found = Page(scene), {}
    for i in rng.permutation(len(items)):
        item = items[i]
        if isinstance(item, str):
            page.text(" " + item, "filler")
        elif item is chain.first:
            found[0] = tell_first(page, item)
        else:
            number = page.fact(item)
            if item is chain.second:
                found[1] = number
    gold = (found[0], found[1])
    turn = chain_turn(page, *gold, steps=steps)
    return page.example("two_hop", [turn], gold=gold, bridge=chain.first.value, answer=chain.second.value, steps=steps)
