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
    """kept: indices in their new order; gamma [passage]: relevance; beta [head, passage]: shares, heads in the order of layer and head."""

    kept: tuple[int, ...]
    gamma: Values
    beta: Values


@dataclass(frozen=True)
class Fine:
    """candidates: ascending indices; gamma, beta: as in `Coarse`; margin in [-1, 1]: see `headwise.methods.cafe.formula.margin`."""

    candidates: tuple[int, ...]
    margin: float
    gamma: Values
    beta: Values


@dataclass(frozen=True)
class CafeAnswer:
    """text: the answer; ids: with its stop token. kept: in the order of the prompt; candidates: of the fine stage. Both index what was given.

    steered: whether the answer was. gamma [passage]: of the coarse stage. coarse, fine: what the stages saw (`fine` counts inside `kept`). None where
    a stage did not run.
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
    """The heads if they can be used; None if there are none and none are `needed`. Raises `HeadwiseError` otherwise."""
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
    """The heads, for a stage that was asked for by name."""
    if heads is None:
        raise HeadwiseError(f"no {name} were given to look with")
    return heads
