"""Patching: outputs of chosen heads from one run (a clean one) in the place of those of another (a corrupted one).

Where ablation asks whether heads are needed, this asks whether they suffice: does the corrupted run answer like the clean one once it has
nothing of it but the outputs of these heads?
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call, Pass
from headwise.attention.plan import attached
from headwise.attention.vectors import ASKER, by_layer, local_places, position_table, some_heads
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads, HeadSet


class Patch:
    """Step: other outputs of some heads at some positions.

    Args:
        heads: N heads.
        outputs: [B or 1, R, N, d], one row for each batch row, or one for all.
        positions: [B or 1, R] of the text, padding counted; None: each row's last real prompt token (R = 1).
        answer_from: See `AnswerRows`.
    """

    def __init__(self, heads: HeadSet, outputs: Tensor, positions: Tensor | None, answer_from: int | None) -> None:
        self._outputs, self._positions = outputs, positions
        self._rows = AnswerRows(answer_from, ASKER) if positions is None else None
        self._places = by_layer(heads)

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins."""
        if self._rows is not None:
            self._rows.begin(now)

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Put the other outputs in place, as far as their positions lie in this pass.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where nothing is put in.

        Raises:
            HeadwiseError: Rows of outputs or positions do not fit the batch, or the prompt's end is not known.
        """
        if call.layer not in self._places:
            return output
        if len(self._outputs) not in (1, len(output)):
            raise HeadwiseError(
                f"outputs of {len(self._outputs)} rows for a batch of {len(output)} rows; give one row, or one per row"
            )
        positions = self._rows.last(call) if self._rows is not None else self._positions
        if positions is None:  # a pass behind the prompt
            return output
        local = local_places(call, positions)
        here = (local >= 0) & (local < output.shape[1])
        if not bool(here.any()):
            return output
        heads, places = self._places[call.layer]
        given = self._outputs[:, :, places].to(output).expand(len(output), -1, -1, -1)
        row, column = here.nonzero(as_tuple=True)
        out = output.clone()
        for place, head in enumerate(heads):
            out[row, local[row, column], head] = given[row, column, place]
        return out


@contextmanager
def patch(model: Any, heads: Heads, outputs: Tensor, positions: Any = None, answer_from: int | None = None) -> Iterator[None]:
    """Inside the block the chosen heads give `outputs` of another run at some positions; everything else runs as usual.

    Batch rows are independent: row b of the outputs goes into row b of the batch. `record` gives such outputs; prompts of different length are
    aligned by giving each block its own positions.

    Args:
        model: A `Model`, or a transformers model.
        heads: N heads, in the order of `outputs`.
        outputs: [B, R, N, d], or [1, R, N, d] for all rows.
        positions: Where they go, [R] for all rows or [B, R], padding counted; None: each row's last real prompt token (R = 1).
        answer_from: Position of the last prompt token, padding counted, where the passes do not tell (see `AnswerRows`).

    Yields:
        Nothing; after the block the model is what it was, bit for bit.

    Raises:
        HeadwiseError: Heads of another model, shapes that do not go together, numbers that are not finite; and in a pass whose batch has
            another number of rows, or whose prompt's end is not known.
    """
    table = None if positions is None else position_table(positions)
    with attached(model) as plan:
        chosen = some_heads(plan, heads)
        wanted = (1 if table is None else table.shape[1], len(chosen), plan.model.heads.head_dim)
        if not isinstance(outputs, Tensor) or outputs.ndim != 4 or not len(outputs) or tuple(outputs.shape[1:]) != wanted:
            shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise HeadwiseError(
                f"outputs must be [rows, {wanted[0]}, {wanted[1]}, {wanted[2]}] (positions, heads, head size); got {shape}"
            )
        if not outputs.is_floating_point() or not torch.isfinite(outputs.to(plan.model.hf.dtype)).all():
            raise HeadwiseError("outputs to patch in must be floating-point numbers that are finite in the model's dtype")
        with plan.running(Patch(chosen, outputs.detach(), table, answer_from)):
            yield
