"""Two-hop questions, answered directly or with the steps written out."""

from __future__ import annotations

from typing import Any

import numpy as np

from headwise_lab.microworld.chain import chain_turn, draw_chain, tell_first
from headwise_lab.microworld.facts import Fact, Page, Scene, filler_for
from headwise_lab.microworld.options import count
from headwise_lab.microworld.texts import Example


def make(
    rng: np.random.Generator,
    split: str,
    facts: int = 6,
    words: int = 30,
    steps: bool = False,
    chains: int = 1,
    filler: Any = None,
) -> Example:
    """Two facts that belong together, scattered among others, and a question that needs both.

    Args:
        rng: Source of chance.
        split: Whose wordings and words are used.
        facts: Others, from 0 to 400, decoys first (see `draw_chain`).
        words: Of filler.
        steps: The question asks for them (span `mode`) and the answer writes both facts.
        chains: Turns, about a chain each; the other chains are part of the `facts`.
        filler: (rng, words) -> sentences to use instead of ours.

    Returns:
        An example whose info (of the last turn) has facts, gold (numbers of both), bridge and answer. Spans of the answer:
        step/1, step/2, final.

    Raises:
        HeadwiseError: Options out of range.
    """
    count("chains", chains, 1, 1 + count("facts", facts, 0, 400) // 2)
    scene = Scene(rng, split)
    asked = [draw_chain(scene, decoys=(facts - 2 * (chains - 1)) // chains) for _ in range(chains)]
    told = [fact for chain in asked for fact in (chain.first, chain.second, *chain.decoys)]
    told += [scene.other() for _ in range(facts + 2 - len(told))]
    items = [*told, *filler_for(scene, words, filler)]
    page, firsts, numbers = Page(scene), {chain.first for chain in asked}, {}
    for i in rng.permutation(len(items)):
        item = items[i]
        if isinstance(item, Fact):
            numbers[item] = tell_first(page, item) if item in firsts else page.fact(item)
        else:
            page.text(" " + item, "filler")
    golds = [(numbers[chain.first], numbers[chain.second]) for chain in asked]
    turns = [chain_turn(page, *gold, steps=steps) for gold in golds]
    last = asked[-1]
    return page.example("two_hop", turns, gold=golds[-1], bridge=last.first.value, answer=last.second.value, steps=steps)
