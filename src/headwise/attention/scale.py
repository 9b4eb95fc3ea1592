"""Scaling: the outputs of chosen heads times a factor, from gone (0) over unchanged (1) to louder; a factor that learns may be negative, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from headwise.attention.ablate import ByRow, head_masks, scope_rows
from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call, Pass
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten
from headwise.heads.types import HeadId, Heads, HeadSet


class Scaling:
    """Step: multiplies what heads give.

    Args:
        factors: [V or 1, L, H] float32, 1 for heads that stay as they are: V variants, one per batch row, or one for all.
        rows: Who follows the rows of the answer; None: all rows.
    """

    def __init__(self, factors: Tensor, rows: AnswerRows | None) -> None:
        self._factors, self._rows = ByRow(factors), rows
        self._layers = set((factors != 1).any(dim=2).any(dim=0).nonzero().flatten().tolist())

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: which of its rows belong to the answer."""
        if self._rows is not None:
            self._rows.begin(now)

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Multiply the outputs of one layer.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where no factor differs from 1.

        Raises:
            HeadwiseError: Rows of the answer are not known, or there is one set of heads per row and another number of rows.
        """
        if call.layer not in self._layers:
            return output
        factors = self._factors.of(call)[:, None, :, None]
        rows = None if self._rows is None else self._rows.chosen(call)
        if rows is not None:
            factors = torch.where(rows[:, :, None, None], factors, 1.0)
        scaled = (output * factors).to(output.dtype)  # in float32 at least: a factor has more digits than half precision
        return scaled.masked_fill(factors == 0, 0)  # as mode `zero`, whatever the head gave


class LearntScaling:
    """Step: multiplies what heads give by factors that carry gradients (SEAL, arXiv:2501.15225).

    Args:
        heads: Which ones; all others stay as they are.
        factors: [N] float32, one per head; what they hold when a pass runs is what counts.
    """

    def __init__(self, heads: Sequence[HeadId], factors: Tensor) -> None:
        self._factors = factors
        self._places: dict[int, list[int]] = {}  # layer -> places of its heads in the factors
        for place, head in enumerate(heads):
            self._places.setdefault(head.layer, []).append(place)
        self._heads = {layer: [heads[place].head for place in places] for layer, places in self._places.items()}

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """See `Scaling.edit_output`; the result has a gradient towards the factors."""
        if call.layer not in self._places:
            return output
        own = self._factors[self._places[call.layer]].to(output.device)
        table = torch.ones(output.shape[2], device=output.device)
        table[self._heads[call.layer]] = own
        return (output * table[:, None]).to(output.dtype)  # in float32 at least, as in `Scaling`


@contextmanager
def scale(
    model: Any,
    heads: Heads | Sequence[HeadSet],
    factor: float | Sequence[float],
    scope: str = "all",
    answer_from: int | None = None,
) -> Iterator[None]:
    """Inside the block the outputs of the chosen heads are multiplied, in front of the output projection.

    Factor 0 is `ablate` with mode `zero`; factor 1 changes not a bit.

    Args:
        model: A `Model`, or a transformers model.
        heads: One set (whatever `HeadSet.of` takes), or one `HeadSet` per batch row (every pass inside the block must then have that many rows;
            a set may be empty).
        factor: From 0 on; one for all, or one per `HeadSet` of the list.
        scope: `all` rows, or `answer`: see `ablate`.
        answer_from: See `ablate`.

    Yields:
        Nothing; after the block the model is what it was.

    Raises:
        HeadwiseError: Heads of another model, an unknown scope, a factor that is negative, infinite or no number, or not one per set; and in a
            pass whose answer rows are not known, or with another number of rows than sets.
    """
    given = list(factor) if isinstance(factor, list | tuple) else [factor]
    numbers = [_checked(one) for one in given]
    with attached(model) as plan:
        masks = head_masks(plan.model, heads)
        if len(numbers) not in (1, len(masks)):
            raise HeadwiseError(
                f"{len(numbers)} factors for {len(masks) if len(masks) > 1 else 'one'} set{'s' * (len(masks) > 1)} of heads; give one, or one per set"
            )
        factors = torch.where(masks, torch.tensor(numbers)[:, None, None], 1.0)
        with plan.running(Scaling(factors, scope_rows(scope, answer_from))):
            yield


def _checked(factor: Any) -> float:
    """The factor as a number that float32 holds."""
    number = isinstance(factor, Real) and not isinstance(factor, bool)
    if not number or not 0 <= factor <= torch.finfo(torch.float32).max:  # NaN is in no range
        raise HeadwiseError(f"a factor of heads must be a finite number from 0 on; got {shorten(repr(factor))}")
    return float(factor)
