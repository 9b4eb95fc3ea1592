"""All tasks of the micro-world by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.prompts.words import check_split
from headwise_lab.microworld import (
    closed_book,
    contradiction,
    documents,
    grounded,
    key_value,
    needle,
    passages,
    passkey,
    reask,
    two_hop,
)
from headwise_lab.microworld.texts import Example

TASKS: dict[str, Callable[..., Example]] = {
    "needle": needle.make,
    "key_value": key_value.make,
    "passages": passages.make,
    "closed_book": closed_book.make,
    "world_text": closed_book.make_text,
    "contradiction": contradiction.make,
    "two_hop": two_hop.make,
    "reask": reask.make,
    "passkey": passkey.make,
    "grounded": grounded.make,
    "documents": documents.make,
}


def make_example(task: str, split: str, rng: np.random.Generator, **options: Any) -> Example:
    """One example of a task.

    Args:
        task: One of `TASKS`.
        split: train, selection or test.
        rng: Source of chance; the same state gives the same example.
        **options: See the task's `make`.

    Raises:
        HeadwiseError: A task, a split, or an option that does not exist, or an option out of range.
    """
    if task not in TASKS:
        raise HeadwiseError(f"unknown task {task!r} of the micro-world; choose one of {', '.join(TASKS)}")
    make = TASKS[task]
    known = make.__code__.co_varnames[2 : make.__code__.co_argcount]
    for option in options:
        if option not in known:
            raise HeadwiseError(f"the task {task!r} has no option {option!r}; it has {', '.join(known)}")
    return make(rng, check_split(split), **options)
