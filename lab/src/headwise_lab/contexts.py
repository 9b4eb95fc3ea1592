"""Contexts and questions of the micro-world for `headwise bench cache` (entry points `headwise.tasks`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from headwise.evaluation.contexts import Context, Question, check_drawing, fitted_contexts
from headwise.heads import HeadwiseError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.runtime.answer import stop_ids
from headwise.stats.metrics import exact_match
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.texts import Example, to_prompt

TASKS = ("needle", "key_value", "passages")
SHOTS = {"key_value": 3}  # answered questions in front of each question of a task; none in others
SPARE = 4  # tokens that an answer may have beyond the gold answer
PREFIX = "world."  # of the names under which `headwise bench cache` knows the tasks


def draw_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """Contexts of a micro-world task (a `headwise.evaluation.contexts.CacheTask`).

    Args:
        model: The model with its tokenizer.
        task: `needle`, `key_value` or `passages`, with or without `world.` in front.
        length: Tokens of prompt and answer; they fill about so many and no more.
        count: Number of contexts.
        questions: Questions per context.
        split: `train`, `selection` or `test`.
        seed: 0 or more; the same seed and tokenizer give the same contexts.

    Returns:
        `count` contexts; an answer is right if it is the whole gold answer with its closing mark.

    Raises:
        HeadwiseError: Prompts of this length cannot be made, or exceed the model.
    """
    name = task.removeprefix(PREFIX)
    if name not in TASKS:
        raise HeadwiseError(f"unknown task {task!r}; use {', '.join(TASKS)}")
    check_drawing(model, length, count, questions, seed)
    encoder, stop = PieceEncoder(model.tokenizer), stop_ids(model)
    encode = lru_cache(maxsize=100_000)(encoder.encode)

    def draw(size: float, number: int) -> Context:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), length, number])
        example = make_example(name, split, rng, **_sized(name, size, questions))
        return _asked(example, length, encode, encoder.bos, stop)._replace(task=task)

    return fitted_contexts(draw, length, count)


def _sized(task: str, tokens: float, questions: int) -> dict[str, Any]:
    """Options for a prompt of very roughly so many tokens."""
    if task == "key_value":
        shots = SHOTS[task] + questions - 1
        return {"k": max(shots + 1, int(tokens / 30) - 6), "shots": shots}
    if task == "passages":
        return {"n": max(1, int(tokens / 50), questions - 1), "questions": questions}
    return {"facts": max(round(tokens / 28), questions - 1), "words": round(tokens / 3.2), "questions": questions}


def _asked(
    example: Example, length: int, encode: Callable[[str], tuple[int, ...]], bos: tuple[int, ...], stop: frozenset[int]
) -> Context:
    """Every turn behind the demonstrations as a question of its own."""
    shots = SHOTS.get(example.task, 0)
    size = len(bos) + sum(len(encode(piece.text)) for piece in example.context)
    questions: list[Question] = []
    for turn in example.turns[shots:]:
        prompt = to_prompt(replace(example, turns=(*example.turns[:shots], turn)), encode, bos=bos, closing=True)

        def judge(said: str, wanted: str = turn.answer_text + turn.close) -> float:
            return float(exact_match(said, wanted))

        answer, name = turn.answer_text, str(len(questions) + 1)
        questions.append(Question(prompt.ids[size:], len(prompt.gold) + SPARE, judge, prompt.span("answer"), answer, name))
    return Context(example.task, length, prompt.ids[:size], tuple(questions), stop)
