"""What the two stages of coarse-to-fine answering give, and which heads they take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads, HeadSet
from headwise.models.model import Model

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Coarse:
    """What the coarse stage found.

    Attributes:
        kept: Indices of the passages that stay, in their new order.
        gamma: [P], relevance of every passage (eq. 5).
        beta: [K, P], shares (eq. 1), heads in the order of layer and head.
    """

    kept: tuple[int, ...]
    gamma: Values
    beta: Values


@dataclass(frozen=True)
class Fine:
    """What the fine stage found.

    Attributes:
        candidates: Indices of the passages to steer towards, ascending.
        margin: In [-1, 1], see `headwise.methods.cafe.formula.margin`.
        gamma: As in `Coarse`.
        beta: As in `Coarse`.
    """

    candidates: tuple[int, ...]
    margin: float
    gamma: Values
    beta: Values


@dataclass(frozen=True)
class CafeAnswer:
    """An answer and how it came about; a part is None where its stage did not run.

    Attributes:
        text: The answer.
        ids: Its tokens, the stop token included if one came.
        kept: Indices of the given passages that were answered from, in the order of the prompt.
        candidates: Indices of the given passages that the fine stage chose.
        steered: Whether attention to the candidates was raised.
        gamma: [P], relevance of the given passages in the coarse stage.
        coarse: What that stage saw.
        fine: What the fine stage saw; its indices count inside `kept`.
    """

    text: str
    ids: tuple[int, ...]
    kept: tuple[int, ...]
    candidates: tuple[int, ...]
    steered: bool
    gamma: Values | None
    coarse: Coarse | None
    fine: Fine | None


def usable_heads(model: Model, heads: Heads | None, name: str, needed: bool) -> HeadSet | None:
    """The heads of a stage, checked; None if there are none and none are `needed`. `name` is that of the argument, for messages.

    Raises:
        HeadwiseError: None although they are needed, heads of another model, or one in a layer with a sliding window.
    """
    chosen = HeadSet((), model.heads.shape) if heads is None else model.check(heads)
    if not len(chosen):
        if needed:
            raise HeadwiseError(
                f"no {name} were given; give at least one, or switch off what needs them (filter, reorder; steer)"
            )
        return None
    sliding = [head for head in chosen if model.heads.windows[head.layer] is not None]
    if sliding:
        raise HeadwiseError(f"{sliding[0]} of {name} lies in a layer with a sliding window and cannot see far passages")
    return chosen


def needed_heads(heads: HeadSet | None, name: str) -> HeadSet:
    """The heads, for a stage that was asked for by name; `HeadwiseError` if there are none."""
    if heads is None:
        raise HeadwiseError(f"no {name} were given to look with")
    return heads
