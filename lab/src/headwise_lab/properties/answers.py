"""Questions of the micro-world, answered without some heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.attention import ablate
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads import HeadSet
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.runner import Leaf, leaves, prefill
from headwise_lab.eval_tasks import Drawer, Item, Spec, right, right_or_world, right_steps

ROWS, TOKENS = 32, 16_384  # variants in one batch; rows x prompt tokens if heads are removed at every position

SPECS = {
    "steps": Spec(("properties_steps", "all_steps", "written"), "two_hop", right_steps, {"steps": True}, spare=8),
    "direct": Spec(("properties_direct",), "two_hop", right, {"steps": False}),
    "closed_book": Spec(("properties_closed_book",), "closed_book", right, {"which": "asked"}),
    "contradiction": Spec(("properties_contradiction", "memory"), "contradiction", right_or_world),
}


class Answers(NamedTuple):
    """What a model says without each of several sets of heads.

    Attributes:
        text: [set][item], the answer.
        marks: [set, item, number], what the task's judge says, in [0, 1].
        logprob: [set, item], log-probability of the gold answer in nats.
    """

    text: list[list[str]]
    marks: NDArray[np.float64]
    logprob: NDArray[np.float64]


def draw_items(model: Model, task: str, count: int, seed: int) -> list[Item]:
    """Different questions of the test split.

    Args:
        model: With its tokenizer.
        task: One of `SPECS`.
        count: How many; fewer where there are no more.
        seed: 0 or more.

    Raises:
        NotMeasured: They do not fit the model.
    """
    drawer = Drawer(model, count, "test", seed)
    return drawer.draw(SPECS[task], drawer.options(SPECS[task]))


def answer_items(model: Model, task: str, items: Sequence[Item], sets: Sequence[HeadSet], mode: str, scope: str) -> Answers:
    """Every item's greedy answer without each set of heads.

    Args:
        model: With its tokenizer.
        task: One of `SPECS`.
        items: As `draw_items` gives them.
        sets: The heads to ablate; an empty set is the whole model.
        mode: See `headwise.attention.ablate`.
        scope: See `headwise.attention.ablate`.
    """
    spec, stop = SPECS[task], stop_ids(model)
    texts = [[""] * len(items) for _ in sets]
    marks, logprob = np.zeros((len(sets), len(items), len(spec.rows))), np.zeros((len(sets), len(items)))
    with attached(model.hf):
        for leaf in _starts(model, [item.prompt for item in items], scope):
            example, prompt = items[leaf.index]
            rows = max(1, min(ROWS, TOKENS // len(leaf.rest)))
            enter = partial(ablate, model.hf, mode=mode, scope=scope, answer_from=len(prompt.ids) - 1)
            answer = partial(answer_variants, model.hf, leaf, prompt.gold)
            for start in range(0, len(sets), rows):
                found = answer(sets[start : start + rows], enter, stop, len(prompt.gold) + spec.spare)
                for row, one in enumerate(found, start):
                    texts[row][leaf.index] = text = model.tokenizer.decode(one.ids, skip_special_tokens=True).strip()
                    marks[row, leaf.index] = spec.judge(example, text)
                    logprob[row, leaf.index] = one.gold_logprob
    return Answers(texts, marks, logprob)


def _starts(model: Model, prompts: Sequence[Prompt], scope: str) -> Iterator[Leaf]:
    """Where variants part: at the last prompt token (scope `answer`), or at the first (scope `all`)."""
    if scope == "all":
        yield from (Leaf(i, prompt.ids, full_cache(model.hf)) for i, prompt in enumerate(prompts))
        return
    for leaf in leaves(model.hf, [prompt.ids for prompt in prompts]):
        prefill(model.hf, leaf.past, leaf.rest[:-1])
        yield leaf
