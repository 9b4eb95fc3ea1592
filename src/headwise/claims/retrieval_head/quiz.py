"""Questions, answered without some heads: those about the real world come from `facts`, those of the micro-world from headwise-lab."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.attention import ablate
from headwise.attention.plan import attached
from headwise.evaluation.ablation import variant_starts
from headwise.heads import HeadSet
from headwise.models.model import Model, describe_model
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.rundir import Cell, RunDirectory
from headwise.runtime.runner import Leaf

ROWS, TOKENS = 48, 16_384  # variants in one batch; rows x prompt tokens if heads are removed at every position


class Asked(NamedTuple):
    """One question.

    Attributes:
        prompt: Its `gold` holds the closing mark and a line break.
        judge: An answer -> one number in [0, 1] per number of the task.
        context: What stands in front of the question, for the reader of a result; may be empty.
        question: What is asked.
        answer: The right answer.
    """

    prompt: Prompt
    judge: Callable[[str], tuple[float, ...]]
    context: str
    question: str
    answer: str


@dataclass(frozen=True)
class Quiz:
    """Questions of one task. numbers: names of what `judge` gives. spare: tokens that an answer may have beyond the gold answer."""

    task: str
    numbers: tuple[str, ...]
    spare: int
    items: Sequence[Asked]


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


def describe_answers(model: Model, quiz: Quiz, sets: Sequence[HeadSet], mode: str, scope: str) -> dict[str, Any]:
    """All that decides the answers, as plain data: what a `RunDirectory` of `answer_items` is described by."""
    asked = hashlib.sha256(repr([(item.prompt.ids, item.prompt.gold) for item in quiz.items]).encode()).hexdigest()[:16]
    heads = hashlib.sha256(repr([sorted(chosen) for chosen in sets]).encode()).hexdigest()[:16]
    stated = {"task": quiz.task, "items": len(quiz.items), "asked": asked, "sets": len(sets), "heads": heads}
    return stated | {"mode": mode, "scope": scope} | describe_model(model)


def answer_items(
    model: Model, quiz: Quiz, sets: Sequence[HeadSet], mode: str, scope: str, directory: RunDirectory | None = None
) -> Answers:
    """Every item's greedy answer without each set of heads.

    Args:
        model: With its tokenizer.
        quiz: The questions.
        sets: The heads to ablate; an empty set is the whole model.
        mode: See `headwise.attention.ablate`.
        scope: See `headwise.attention.ablate`.
        directory: Answered items are kept there and not asked again.
    """
    texts = [[""] * len(quiz.items) for _ in sets]
    marks, logprob = np.zeros((len(sets), len(quiz.items), len(quiz.numbers))), np.zeros((len(sets), len(quiz.items)))
    known = {i: cell for i in range(len(quiz.items)) if directory and (cell := directory.load(f"item{i:04d}"))}
    open_items = [i for i in range(len(quiz.items)) if i not in known]
    with attached(model.hf):
        for leaf in variant_starts(model.hf, [quiz.items[i].prompt.ids for i in open_items], scope) if open_items else ():
            index = open_items[leaf.index]
            known[index] = _answered(model, quiz, leaf, index, sets, mode, scope)
            if directory:
                directory.save(f"item{index:04d}", *known[index])
    for index, (arrays, info) in known.items():
        marks[:, index], logprob[:, index] = arrays["marks"], arrays["logprob"]
        for row, said in enumerate(info):
            texts[row][index] = said["text"]
    return Answers(texts, marks, logprob)


def _answered(model: Model, quiz: Quiz, leaf: Leaf, index: int, sets: Sequence[HeadSet], mode: str, scope: str) -> Cell:
    """({"marks": [set, number], "logprob": [set]}, the answer of each set)."""
    item, stop = quiz.items[index], stop_ids(model)
    rows = max(1, min(ROWS, TOKENS // len(leaf.rest)))
    enter = partial(ablate, model.hf, mode=mode, scope=scope, answer_from=len(item.prompt.ids) - 1)
    answer = partial(answer_variants, model.hf, leaf, item.prompt.gold)
    batches = [sets[start : start + rows] for start in range(0, len(sets), rows)]
    found = [one for batch in batches for one in answer(batch, enter, stop, len(item.prompt.gold) + quiz.spare)]
    texts = [model.tokenizer.decode(one.ids, skip_special_tokens=True).strip() for one in found]
    marks = np.asarray([item.judge(text) for text in texts], dtype=np.float64)
    return {"marks": marks, "logprob": np.asarray([one.gold_logprob for one in found])}, [{"text": text} for text in texts]
