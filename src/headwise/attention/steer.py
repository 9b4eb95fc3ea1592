"""Steering: a bias on the attention logits of chosen heads (or all) towards, or away from, chosen spans.

Peng et al. 2025 (CAFE, arXiv:2505.10063, eq. 8-9) steer all heads from the question to the passages that are likely to answer it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attention.plan import Call, attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.maths.attend import attend
from headwise.models.model import transformers_model

ROWS = ("all", "question", "question+generated")
BIAS_POSITIONS = ("post_scale", "pre_scale")
BLOCK = 2**24  # entries of a mask built at once
Pick = list[int] | slice
EVERYTHING = slice(None)


class Steering:
    """Adds a bias to the logits of `spans` for query rows at positions [first, stop) (stop None: all later ones).

    heads: layer -> its steered query heads. before_scaling: the bias is multiplied by the model's scaling, as queries times keys are.
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

    def query(self, layer: int, query: Tensor, start: int) -> Tensor:
        """Queries stay as they are."""
        return query

    def output(self, call: Call, output: Tensor, start: int) -> Tensor:
        """Attend once more for the steered rows and heads only, with the bias, and put their outputs in place."""
        chosen = self._heads.get(call.layer)
        if not chosen or not self._bias:
            return output
        rows, length = call.query.shape[2], sum(keys.shape[2] for keys in call.keys)
        dropped = max(0, start + rows - length)  # positions whose keys the layer's cache no longer holds
        start -= dropped  # column of the first row's own key
        first, stop = max(self._first - dropped, start), start + rows
        if self._stop is not None:
            stop = min(stop, self._stop - dropped)
        bias = self._columns(call, length, dropped)
        if first >= stop or bias is None:
            return output
        out, step = output.clone(), max(1, BLOCK // length)
        for low in range(first, stop, step):
            place = slice(low - start, min(low + step, stop) - start)
            mask = _biased(call, bias, place, start)
            for heads, groups in _by_group(chosen, call):
                out[:, place, heads] = _attend_again(call, place, heads, groups, mask).to(out.dtype)
        return out

    def _columns(self, call: Call, length: int, dropped: int) -> Tensor | None:
        """Bias of each key [S] float32; None if the layer no longer holds any of the spans."""
        bias = torch.zeros(length, device=call.query.device)
        for start, stop in self._spans:
            bias[max(0, start - dropped) : max(0, stop - dropped)] = self._bias * (call.scaling if self._before_scaling else 1.0)
        return bias if bias.any() else None


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
    """Inside the block the chosen heads see the logits of `spans` raised by `bias` (natural-log units; negative lowers).

    heads: None for all heads of all attention layers. spans: key positions [start, stop), the same in all batch rows (padding counts).
    rows: query rows that are steered: `all` that see a span; `question`: positions [start, stop) of `question`, which must lie behind
    the spans; `question+generated`: all positions from the question's start on. Passes may come in any pieces, over any cache.
    bias_position: `post_scale` multiplies the odds of those keys by exp(bias), also behind a cap of the logits; `pre_scale` adds the bias
    to query times key before the model's scaling (1 / sqrt(head size) in most families). A bias of 0 changes not a bit; float32 keeps biases
    below about 100 exact to 1e-5. Raises `HeadwiseError` for unknown options, spans that are empty or reach into the question, a bias
    that is not finite, and `pre_scale` on a model that caps its logits.
    """
    check_steering(transformers_model(model), bias, rows, bias_position)
    first, stop = _rows(spans, rows, question)
    with attached(model) as plan:
        edit = Steering(plan.model.by_layer(heads), spans, bias, first, stop, bias_position == "pre_scale")
        plan.edits.append(edit)
        try:
            yield
        finally:
            plan.edits.remove(edit)


def check_steering(model: Any, bias: float, rows: str, bias_position: str) -> None:
    """Raise `HeadwiseError` for options that `steer` does not take for this model."""
    for name, given, allowed in (("rows", rows, ROWS), ("bias_position", bias_position, BIAS_POSITIONS)):
        if given not in allowed:
            raise HeadwiseError(f"unknown {name} {given!r}; use {', '.join(allowed)}")
    if not math.isfinite(bias):
        raise HeadwiseError(f"the bias must be a finite number; got {bias:g} (50 is as good as infinite)")
    if bias_position == "pre_scale" and getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        raise HeadwiseError("bias_position 'pre_scale' has no meaning for a model that caps its logits; use 'post_scale'")


def _rows(spans: Sequence[tuple[int, int]], rows: str, question: tuple[int, int] | None) -> tuple[int, int | None]:
    """First and last + 1 position of the rows to steer."""
    wrong = [span for span in spans if not 0 <= span[0] < span[1]]
    if wrong:
        raise HeadwiseError(f"span [{wrong[0][0]}, {wrong[0][1]}) holds no position; give [start, stop) with 0 <= start < stop")
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


def _by_group(chosen: list[int], call: Call) -> list[tuple[Pick, slice]]:
    """Query heads with their KV heads: all at once, or KV group by KV group, so that keys are never copied."""
    heads = call.query.shape[1]
    if len(chosen) == heads:
        return [(EVERYTHING, EVERYTHING)]
    group = heads // call.keys[0].shape[1]
    return [([h for h in chosen if h // group == kv], slice(kv, kv + 1)) for kv in sorted({h // group for h in chosen})]


def _biased(call: Call, bias: Tensor, place: slice, start: int) -> Tensor:
    """Additive mask [B or 1, 1 or H, R, S] of some rows: lowest number where nothing may be seen, else the bias."""
    if call.mask is None:
        own = torch.arange(place.start + start, place.stop + start, device=bias.device)
        seen = torch.arange(len(bias), device=bias.device) <= own.view(1, 1, -1, 1)
    else:
        seen = call.mask[:, :, place]
    if seen.dtype != torch.bool:
        return seen.float() + bias
    return bias.expand(seen.shape).masked_fill(~seen, torch.finfo(call.query.dtype).min)


def _attend_again(call: Call, place: slice, heads: Pick, groups: slice, mask: Tensor) -> Tensor:
    past = (call.keys[0][:, groups], call.values[0][:, groups]) if len(call.keys) == 2 else None
    if mask.shape[1] > 1:
        mask = mask[:, heads]
    return attend(
        call.query[:, heads, place],
        call.keys[-1][:, groups],
        call.values[-1][:, groups],
        scaling=call.scaling,
        mask=mask if past else mask.to(call.query.dtype),  # without a past it goes to a kernel that wants one dtype
        past=past,
        softcap=call.softcap,
        sinks=None if call.sinks is None else call.sinks[heads],
    )
