"""Contexts and questions of the micro-world for `headwise bench cache` (entry points `headwise.tasks`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from headwise.evaluation.compression import Context, Question, longest
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
FILL = 0.95  # mean share of the wanted length that a prompt and its answer fill
MISSES = 100  # prompts in a row that do not fit, after which drawing ends


def draw_contexts(
    model: Model, task: str, length: int, count: int, questions: int = 1, split: str = "test", seed: int = 0
) -> list[Context]:
    """`count` contexts of a micro-world task whose prompts and answers fill about `length` tokens and no more, with `questions` each.

    The same seed and tokenizer give the same contexts. Raises `HeadwiseError` if prompts of this length cannot be made, or exceed the model.
    """
    if task not in TASKS:
        raise HeadwiseError(f"unknown task {task!r}; use {', '.join(TASKS)}")
    if count < 1 or questions < 1 or seed < 0:
        raise HeadwiseError(f"items and questions must be at least 1 and the seed 0 or more; got {count}, {questions} and {seed}")
    most = model.positions
    if most is not None and length > most:
        raise HeadwiseError(
            f"prompts of {length} tokens asked for, but {model.name} has {most} positions; choose {most} or fewer"
        )
    encoder, stop = PieceEncoder(model.tokenizer), stop_ids(model)
    encode = lru_cache(maxsize=100_000)(encoder.encode)

    def draw(size: float, number: int) -> Context:
        rng = np.random.default_rng([seed, zlib.crc32(task.encode()), length, number])
        example = make_example(task, split, rng, **_sized(task, size, questions))
        return _asked(example, length, encode, encoder.bos, stop)

    size = float(length)
    for _ in range(3):
        size *= FILL * length / float(np.mean([longest(draw(size, i)) for i in range(6)]))
    found: list[Context] = []
    number = misses = 0
    while len(found) < count:
        context = draw(size, number)
        number, misses = number + 1, misses + 1
        if longest(context) <= length:
            found.append(context)
            misses = 0
        elif misses > MISSES:
            raise HeadwiseError(f"no {task} prompt with {questions} questions fits into {length} tokens; choose a greater length")
    return found


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
    questions = []
    for turn in example.turns[shots:]:
        prompt = to_prompt(replace(example, turns=(*example.turns[:shots], turn)), encode, bos=bos, closing=True)

        def judge(said: str, wanted: str = turn.answer_text + turn.close) -> float:
            return float(exact_match(said, wanted))

        questions.append(Question(prompt.ids[size:], len(prompt.gold) + SPARE, judge, prompt.span("answer")))
    return Context(example.task, length, prompt.ids[:size], tuple(questions), stop)
