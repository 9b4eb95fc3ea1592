"""Vectors of heads: their outputs at chosen positions, and vectors of the user's put in the place of such outputs (function vectors).

Kahardipraja et al. 2025 (arXiv:2505.15807, the Atlas of in-context learning): the output of a head at the last token of one prompt, times a
scalar, is written at the same head at the last token of another prompt and at every token generated behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call, Pass
from headwise.attention.plan import Plan, attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number
from headwise.heads.types import Heads, HeadSet

VECTOR_MODES = ("replace", "add")
WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
ASKER = "this change of heads"


@dataclass(frozen=True, eq=False)
class HeadVectors:
    """One vector per head, as wide as a head's output in front of the output projection.

    Attributes:
        heads: N heads, at least one.
        values: [N, d] float32 on the CPU, finite; values[i] belongs to heads[i].

    Raises:
        HeadwiseError: No head, another shape, or a number that is not finite.
    """

    heads: HeadSet
    values: Tensor

    def __post_init__(self) -> None:
        try:
            values = torch.as_tensor(self.values).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise HeadwiseError("vectors must be a tensor of numbers [heads, head size]") from error
        if values.is_complex():
            raise HeadwiseError("vectors must be real numbers; got complex ones")
        values = values.to("cpu", torch.float32)
        if not len(self.heads):
            raise HeadwiseError("vectors of no head; choose at least one")
        if values.ndim != 2 or len(values) != len(self.heads):
            raise HeadwiseError(
                f"{len(self.heads)} heads need vectors [{len(self.heads)}, head size]; got the shape {list(values.shape)}"
            )
        if not torch.isfinite(values).all():
            raise HeadwiseError("vectors of heads hold NaN or infinite numbers")
        object.__setattr__(self, "values", values)

    @property
    def norms(self) -> Tensor:
        """[N] float32, the Euclidean norm of each vector."""
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1)
        return norms

    def of(self, heads: Heads) -> HeadVectors:
        """The vectors of some of these heads, in the order given.

        Raises:
            HeadwiseError: A head that has no vector here, heads of another model, or none.
        """
        chosen = HeadSet.of(heads, self.heads.shape, "some of these heads")
        places = {head: place for place, head in enumerate(self.heads)}
        missing = [head for head in chosen if head not in places]
        if missing:
            raise HeadwiseError(f"there is no vector of head {missing[0]}; extract it first")
        return HeadVectors(chosen, self.values[[places[head] for head in chosen]])


class Insertion:
    """Step: vectors in place of, or on top of, what their heads give in the rows of the answer.

    Args:
        plan: Of the model.
        vectors: One set for all batch rows, or one per row.
        mode: `replace` (output = scale x vector) or `add` (output + scale x vector).
        scales: As many as there are sets.
        answer_from: See `AnswerRows`.
    """

    def __init__(
        self, plan: Plan, vectors: Sequence[HeadVectors], mode: str, scales: Sequence[float], answer_from: int | None
    ) -> None:
        self._mode, self._rows = mode, AnswerRows(answer_from, ASKER)
        heads, size, dtype = plan.model.heads.shape[1], plan.model.heads.head_dim, plan.model.hf.dtype
        layers = sorted({head.layer for one in vectors for head in one.heads})
        # layer -> which heads [V, H], and their scaled vectors [V, H, d]
        self._masks = {layer: torch.zeros(len(vectors), heads, dtype=torch.bool) for layer in layers}
        self._values = {layer: torch.zeros(len(vectors), heads, size) for layer in layers}
        for row, (one, scale) in enumerate(zip(vectors, scales, strict=True)):
            scaled = one.values * scale
            if not torch.isfinite(scaled.to(dtype)).all():
                raise HeadwiseError(
                    f"vectors times {scale:g} do not fit into {str(dtype).removeprefix('torch.')}; lower the scale"
                )
            for head, value in zip(one.heads, scaled, strict=True):
                self._masks[head.layer][row, head.head] = mode == "replace" or scale != 0  # nothing added changes no bit
                self._values[head.layer][row, head.head] = value

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: which of its rows belong to the answer."""
        self._rows.begin(now)

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Write the vectors of one layer (Kahardipraja et al. 2025, section 5).

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where nothing is written.

        Raises:
            HeadwiseError: Rows of the answer are not known, or there is one set of vectors per row and another number of rows.
        """
        if call.layer not in self._masks:
            return output
        chosen, values = self._on(call.layer, output)
        if len(chosen) not in (1, len(output)):
            raise HeadwiseError(f"{len(chosen)} sets of vectors for a batch of {len(output)} rows; give one, or one per row")
        rows = self._rows.chosen(call)
        place = chosen[:, None, :, None]
        if rows is not None:
            if not bool(rows.any()):
                return output
            place = place & rows[:, :, None, None]
        return torch.where(place, values[:, None] if self._mode == "replace" else output + values[:, None], output)

    def _on(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and vectors of a layer on the device, and in the dtype, of its output; copied there once."""
        if self._values[layer].device != like.device or self._values[layer].dtype != like.dtype:
            self._masks[layer], self._values[layer] = self._masks[layer].to(like.device), self._values[layer].to(like)
        return self._masks[layer], self._values[layer]


@contextmanager
def insert(
    model: Any,
    vectors: HeadVectors | Sequence[HeadVectors],
    mode: str = "replace",
    scale: float | Sequence[float] = 1.0,
    answer_from: int | None = None,
) -> Iterator[None]:
    """Inside the block heads give vectors of the user's, at each row's last real prompt token and everywhere behind it.

    In forward passes and in `generate`, whatever cache and padding. What other positions, and other heads, are given stays as it is.

    Args:
        model: A `Model`, or a transformers model.
        vectors: One set of vectors for all batch rows, or one set per row (every pass inside the block must then have that many rows).
        mode: `replace` (the head's output becomes scale x vector) or `add` (scale x vector is added to it).
        scale: Factor of the vectors, finite; or one per set.
        answer_from: Position of the last prompt token, padding counted, where the passes do not tell (see `AnswerRows`).

    Yields:
        Nothing; after the block the model is what it was, bit for bit.

    Raises:
        HeadwiseError: An unknown mode, a scale that is no finite number, vectors of a model of another shape; and in a pass whose answer rows
            are not known.
    """
    sets: list[Any] = list(vectors) if isinstance(vectors, list | tuple) else [vectors]
    if not sets or not all(isinstance(one, HeadVectors) for one in sets):
        raise HeadwiseError("vectors are wanted: a HeadVectors, or one per batch row (see headwise.extract_vectors)")
    scales = check_insertion(mode, scale if isinstance(scale, list | tuple) else [scale] * len(sets))
    if len(scales) != len(sets):
        raise HeadwiseError(f"{len(scales)} scales for {len(sets)} sets of vectors; give one, or one per set")
    with attached(model) as plan:
        for one in sets:
            plan.model.check(one.heads)
            if one.values.shape[1] != plan.model.heads.head_dim:
                raise HeadwiseError(
                    f"vectors of {one.values.shape[1]} numbers for {plan.model.name}, whose heads give {plan.model.heads.head_dim}"
                )
        with plan.running(Insertion(plan, sets, mode, scales, answer_from)):
            yield


def check_insertion(mode: str, scales: Sequence[Any]) -> list[float]:
    """The scales as floats. Raises `HeadwiseError` for a mode that `insert` does not know, or a scale that is no finite number."""
    if mode not in VECTOR_MODES:
        raise HeadwiseError(f"unknown mode {mode!r} of vectors; use {' or '.join(VECTOR_MODES)}")
    return [checked_number(scale, "the scale") for scale in scales]


class Recording:
    """Look: outputs of some heads at some positions of each row, kept until the next pass that has them. `record` makes it.

    Args:
        heads: N heads.
        positions: [B or 1, R] of the text, padding counted; None: each row's last real prompt token (R = 1).
        answer_from: See `AnswerRows`.
    """

    def __init__(self, heads: HeadSet, positions: Tensor | None, answer_from: int | None) -> None:
        self.heads, self._positions = heads, positions
        self._rows = AnswerRows(answer_from, ASKER) if positions is None else None
        self._places = by_layer(heads)
        self._found: dict[int, Tensor] = {}

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins."""
        if self._rows is not None:
            self._rows.begin(now)

    def look(self, call: Call) -> None:
        """Keep what the heads of one layer give, with all edits of other blocks."""
        if call.layer not in self._places:
            return
        positions = self._rows.last(call) if self._rows is not None else self._positions
        if positions is None:  # a pass behind the prompt
            return
        local, total = local_places(call, positions), call.query.shape[2]
        outside = bool(((local < 0) | (local >= total)).any())
        if outside and self._rows is not None:  # the prompt does not end in this pass
            return
        if outside:
            raise HeadwiseError(
                f"a position to record lies outside of the pass, which has positions {call.start} to {call.start + total - 1}"
            )
        rows = torch.arange(len(local), device=local.device)[:, None]
        heads, _ = self._places[call.layer]
        self._found[call.layer] = call.output[rows, local][:, :, heads].detach()

    @property
    def outputs(self) -> Tensor:
        """[B, R, N, d] in the model's dtype, heads in their order. Raises `HeadwiseError` if no pass has had the positions."""
        if self._found.keys() != self._places.keys():
            raise HeadwiseError("nothing was recorded: run the model on a prompt inside the `with record(...)` block")
        first = next(iter(self._found.values()))
        out = first.new_zeros(*first.shape[:2], len(self.heads), first.shape[-1])
        for layer, found in self._found.items():
            out[:, :, self._places[layer][1]] = found.to(out.device)
        return out


@contextmanager
def record(model: Any, heads: Heads, positions: Any = None, answer_from: int | None = None) -> Iterator[Recording]:
    """Keep outputs of chosen heads (in front of the output projection) while the model runs as usual.

    Args:
        model: A `Model`, or a transformers model.
        heads: N heads.
        positions: Positions of the text that are wanted, [R] for all rows or [B, R], padding counted; None: each row's last real prompt token.
        answer_from: Position of the last prompt token, padding counted, where the passes do not tell (see `AnswerRows`).

    Yields:
        The recording; its `outputs` are [B, R, N, d] after a pass.

    Raises:
        HeadwiseError: No heads, heads of another model, positions that are none; and in a pass that lacks a position.
    """
    with attached(model) as plan:
        chosen = some_heads(plan, heads)
        recording = Recording(chosen, None if positions is None else position_table(positions), answer_from)
        with plan.running(recording):
            yield recording


def some_heads(plan: Plan, heads: Heads) -> HeadSet:
    """At least one head of the plan's model. Raises `HeadwiseError` for none, and as `Model.check`."""
    chosen = plan.model.check(heads)
    if not len(chosen):
        raise HeadwiseError("no head was chosen; choose at least one")
    return chosen


def by_layer(heads: HeadSet) -> dict[int, tuple[list[int], list[int]]]:
    """Layer -> (its heads, their places in the set)."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for place, head in enumerate(heads):
        own, places = found.setdefault(head.layer, ([], []))
        own.append(head.head)
        places.append(place)
    return found


def position_table(positions: Any) -> Tensor:
    """[B or 1, R] int64 from whatever holds whole numbers.

    Raises:
        HeadwiseError: It is empty, of another shape, or holds something else than positions from 0 on.
    """
    try:
        table = torch.as_tensor(positions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HeadwiseError("positions must be whole numbers, as many for each row") from error
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.numel() or table.dtype not in WHOLE or bool((table < 0).any()):
        raise HeadwiseError("positions must be whole numbers from 0 on, [R] for all rows or [rows, R]; got none such")
    return table.long()


def local_places(call: Call, positions: Tensor) -> Tensor:
    """Places of positions of the text in the rows of a call.

    Args:
        call: The attention call of one layer.
        positions: [B or 1, R], or [B or 1] for one in each row.

    Returns:
        [B, R]; below 0 or from T on where a position is not in this call.

    Raises:
        HeadwiseError: As many rows of positions as the batch has not.
    """
    batch = call.query.shape[0]
    if len(positions) not in (1, batch):
        raise HeadwiseError(f"positions of {len(positions)} rows for a batch of {batch} rows; give one row, or one per row")
    table = positions if positions.ndim == 2 else positions[:, None]
    return table.to(call.query.device).expand(batch, -1) - call.start
