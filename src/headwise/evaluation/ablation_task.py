"""The default task of an ablation sweep, and how much work a sweep is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, default_lengths, even_depths
from headwise.prompts.haystack import Haystack, Window, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles

PROMPT_PART = (0.0, 0.9)  # of the haystack; the rest is left for perplexity and calibration
DEPTHS = 5


def default_task(model: Model, seed: int = 0) -> Task:
    """Needle prompts of three lengths that fit the model, from the bundled needles that detection never uses.

    Args:
        model: With its tokenizer.
        seed: Of the haystack windows and of the order of the runs.

    Raises:
        HeadwiseError: The model has no tokenizer.
    """
    if model.tokenizer is None:
        raise HeadwiseError(f"{model.name} has no tokenizer, and prompts are made with one; use headwise.Model(hf, tokenizer)")
    encoder = PieceEncoder(model.tokenizer)
    grid = GridOptions(default_lengths(model.positions), even_depths(DEPTHS), 1, PROMPT_PART, seed)
    return Task(bundled_needles("test"), Haystack(bundled_texts(), encoder), NeedleComposer(encoder), grid)


def given_scores(heads: HeadScores | HeadSet | Iterable[tuple[int, int]], model: Model) -> HeadScores:
    """Scores for a sweep, also where only an order of heads is known.

    Args:
        heads: Scores, which are taken as they are; or at least one head, the most important first.
        model: Whose heads they are.

    Returns:
        Of heads in an order: scores that fall by 1 from the first to the last of them, 0 for all others.

    Raises:
        HeadwiseError: No heads, or heads of another model.
    """
    if isinstance(heads, HeadScores):
        return heads
    chosen = heads if isinstance(heads, HeadSet) else HeadSet.of(heads, model.heads.shape, "given heads")
    if not len(chosen):
        raise HeadwiseError("no heads were given to ablate; give scores, or at least one head")
    model.check(chosen)
    values = np.zeros(chosen.shape)
    for place, head in enumerate(chosen):
        values[head] = len(chosen) - place
    return HeadScores(values, "given", provenance={"chosen_by": chosen.chosen_by, "heads": [str(head) for head in chosen]})


def sweep_tokens(task: Task, sets: int, scope: str) -> float:
    """About how many tokens the forward passes of a sweep read, without those of answers that differ from the gold one.

    Args:
        task: The prompts: one context per length, needle and window, at all depths.
        sets: Sets of heads that are taken away.
        scope: With `answer` contexts are read once for all sets and share what stands in front of the needle; with `all` nothing is shared.

    Returns:
        Tokens, not rounded; what progress is counted in.
    """
    depths = sorted(task.grid.depths)
    gold = float(np.mean([len(task.composer.compose(Window((), (0,)), needle, 0.0).gold) for needle in task.needles])) + 1
    contexts = len(task.needles) * task.grid.windows
    if scope == "all":
        return contexts * sum((length + gold) * len(depths) * sets for length in task.grid.lengths)
    passes = 1 + sum(1 - lower for lower, _ in pairwise(depths))  # of the context's length
    return contexts * sum(length * passes + gold * len(depths) * sets for length in task.grid.lengths)
