"""Steering: a bias on the attention logits of chosen heads (or all) towards, or away from, chosen spans.

Peng et al. 2025 (CAFE, arXiv:2505.10063, eq. 8-9) steer all heads from the question to the passages that are likely to answer it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from headwise.attention.again import BLOCK, additive, attend_again, check_spans, inside_spans, key_positions, part_heads
from headwise.attention.call import Call, KeyPart
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.models.model import as_model

ROWS = ("all", "question", "question+generated")
BIAS_POSITIONS = ("post_scale", "pre_scale")


class Steering:
    """Step: adds a bias to the logits of `spans` for query rows at positions [first, stop).

    Args:
        heads: Layer -> its steered query heads.
        spans: Key positions [start, stop).
        bias: In natural-log units.
        first, stop: Positions of the steered rows; stop None: all later ones.
        before_scaling: The bias is multiplied by the model's scaling, as queries times keys are.
    """

    def __init__(
        self,
        heads: Mapping[int, list[int]],
        spans: Sequence[tuple[int, int]],
        bias: float,
        first: int,
        stop: int | None,
        before_scaling: bool,
    ) -> None:
        self._heads, self._spans, self._bias = heads, tuple(spans), bias
        self._first, self._stop = first, stop
        self._before_scaling = before_scaling

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Attend once more for the steered rows and heads only, with the bias, and put their outputs in place (CAFE, eq. 8-9).

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where nothing is steered.

        Raises:
            HeadwiseError: A pass over a compressed cache whose rows have padding.
        """
        chosen = self._heads.get(call.layer)
        rows = call.query.shape[2]
        first, stop = max(self._first - call.start, 0), rows if self._stop is None else min(rows, self._stop - call.start)
        if not chosen or not self._bias or first >= stop:
            return output
        parts = call.source.parts(rows, call.start + rows)
        each = call.query.shape[1] // sum(part.keys[0].shape[1] for part in parts)
        out = output
        for part in parts:
            heads = part_heads(part, chosen, each)
            bias = self._columns(call, part) if heads else None
            if bias is None:
                continue
            out = output.clone() if out is output else out
            step = max(1, BLOCK // part.length)
            for low in range(first, stop, step):
                place = slice(low, min(low + step, stop))
                for own, groups in heads:
                    mask = additive(call, part, place, groups, bias)
                    out[:, place, own] = attend_again(call, part, place, own, groups, mask).to(out.dtype)
        return out

    def _columns(self, call: Call, part: KeyPart) -> Tensor | None:
        """Bias of each key [B or 1, 1 or n, S] float32; None if the layer no longer holds any of the spans."""
        inside = inside_spans(key_positions(part, call.query.device), self._spans)
        return inside * (self._bias * (call.scaling if self._before_scaling else 1.0)) if bool(inside.any()) else None


@contextmanager
def steer(
    model: Any,
    heads: Heads | None,
    spans: Sequence[tuple[int, int]],
    bias: float,
    rows: str = "all",
    question: tuple[int, int] | None = None,
    bias_position: str = "post_scale",
) -> Iterator[None]:
    """Inside the block the chosen heads see the logits of `spans` raised by `bias`. Passes may come in any pieces, over any cache.

    Over a compressed cache the bias meets the positions of the spans that a head still holds. A bias of 0 changes not a bit; float32 keeps
    biases below about 100 exact to 1e-5.

    Args:
        model: A `Model`, or a transformers model.
        heads: None for all heads of all attention layers.
        spans: Key positions [start, stop), the same in all batch rows (padding counts).
        bias: In natural-log units; negative lowers.
        rows: Query rows that are steered: `all` that see a span; `question`: positions [start, stop) of `question`, which must lie behind
            the spans; `question+generated`: all positions from the question's start on.
        question: Its positions [start, stop).
        bias_position: `post_scale` multiplies the odds of those keys by exp(bias), also behind a cap of the logits; `pre_scale` adds the bias
            to query times key before the model's scaling (1 / sqrt(head size) in most families).

    Yields:
        Nothing; after the block the model is what it was.

    Raises:
        HeadwiseError: Unknown options, spans that are empty or reach into the question, a bias that is not finite, `pre_scale` on a model
            that caps its logits; and in a pass over a compressed cache whose rows have padding.
    """
    check_steering(model, bias, rows, bias_position)
    first, stop = _rows(spans, rows, question)
    with attached(model) as plan:
        step = Steering(plan.model.by_layer(heads), spans, bias, first, stop, bias_position == "pre_scale")
        with plan.running(step):
            yield


def check_steering(model: Any, bias: float, rows: str, bias_position: str) -> None:
    """Raise `HeadwiseError` for options that `steer` does not take for this model; its spans are not looked at.

    Args:
        model: A `Model`, or a transformers model.
        bias: See `steer`.
        rows: See `steer`.
        bias_position: See `steer`.
    """
    for name, given, allowed in (("rows", rows, ROWS), ("bias_position", bias_position, BIAS_POSITIONS)):
        if given not in allowed:
            raise HeadwiseError(f"unknown {name} {given!r}; use {', '.join(allowed)}")
    if not math.isfinite(bias):
        raise HeadwiseError(f"the bias must be a finite number; got {bias:g} (1000 acts as an infinite one)")
    if bias_position == "pre_scale" and as_model(model).attention_cap is not None:
        raise HeadwiseError("bias_position 'pre_scale' has no meaning for a model that caps its logits; use 'post_scale'")


def _rows(spans: Sequence[tuple[int, int]], rows: str, question: tuple[int, int] | None) -> tuple[int, int | None]:
    """First and last + 1 position of the rows to steer."""
    check_spans(spans)
    if rows == "all":
        if question is not None:
            raise HeadwiseError("rows 'all' takes no question; use rows 'question' or 'question+generated'")
        return min((start for start, _ in spans), default=0), None
    if question is None or question[0] >= question[1]:
        raise HeadwiseError(f"rows {rows!r} needs question=(start, stop), the positions of the question; got {question}")
    late = [span for span in spans if span[1] > question[0]]
    if late:
        raise HeadwiseError(f"span [{late[0][0]}, {late[0][1]}) does not end before the question, which starts at {question[0]}")
    return question[0], question[1] if rows == "question" else None
