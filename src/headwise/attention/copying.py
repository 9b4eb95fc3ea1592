"""Forced copying: chosen heads are made to read chosen positions of the prompt while the answer is given.

Kahardipraja et al. 2025 (arXiv:2505.15807, the Atlas of in-context learning) change the attention scores of retrieval heads in two steps; the
paper's constants and exact formula could not be read, so both are options here. `mix` moves the weights instead, which works for scores of any
range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from headwise.attention.again import Pick, additive, check_spans, inside_spans, key_positions, part_heads
from headwise.attention.answer import AnswerRows, checked_position
from headwise.attention.call import Call, KeyPart, Pass, Whole
from headwise.attention.plan import attached
from headwise.attention.vectors import ASKER, some_heads
from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number
from headwise.heads.types import Heads
from headwise.maths.attend import softmax_rows, weighted
from headwise.maths.rows import Keys, visible_logits

COPY_WAYS = ("two_step", "mix")
BLOCK = 2**24  # scores held at once
LARGEST = 1e6  # beyond any use, and far from where products with scores leave float32 and weights become NaN
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Force:
    """How positions are forced.

    Attributes:
        how: `two_step` (on the scores) or `mix` (on the weights).
        beta: two_step: every forced score rises by beta times the row's highest score, if that is above 0.
        factor: two_step: forced scores above 0 are multiplied by it.
        weight: mix: share of a head's attention that goes to the forced positions, in [0, 1].
        temperature: mix: factor of the scores in the softmax over the forced positions, above 0; the higher, the fewer of them are read.

    Raises:
        HeadwiseError: A value that is none of these, or above a million.
    """

    how: str = "two_step"
    beta: float = 0.5
    factor: float = 2.0
    weight: float = 0.9
    temperature: float = 1.5

    def __post_init__(self) -> None:
        if self.how not in COPY_WAYS:
            raise HeadwiseError(f"unknown way {self.how!r} to force copying; use {' or '.join(COPY_WAYS)}")
        for name in ("beta", "factor", "weight", "temperature"):
            value = checked_number(getattr(self, name), name)
            if value > LARGEST:
                raise HeadwiseError(f"{name} must be at most {LARGEST:g}; got {value:g}")
            object.__setattr__(self, name, value)
        if self.beta < 0 or self.factor < 1:
            raise HeadwiseError(f"beta must be at least 0 and factor at least 1; got {self.beta:g} and {self.factor:g}")
        if not 0 <= self.weight <= 1:
            raise HeadwiseError(f"weight must lie in [0, 1]; got {self.weight:g}")
        if self.temperature <= 0:
            raise HeadwiseError(f"temperature must be above 0; got {self.temperature:g}")

    @property
    def is_idle(self) -> bool:
        """Whether nothing would change."""
        return self.weight == 0 if self.how == "mix" else (self.beta == 0 and self.factor == 1)

    def weights(self, scores: Tensor, forced: Tensor, sinks: Tensor | None = None) -> Tensor:
        """Attention weights with the forced positions.

        Args:
            scores: [B, H, R, S] float32 as the softmax takes them (scaled and capped), -inf where a row may not look.
            forced: [B or 1, 1 or H, R or 1, S] bool.
            sinks: [H], as in `attend`.

        Returns:
            [B, H, R, S]. Rows that see no forced position keep their weights.
        """
        if self.how == "two_step":
            return softmax_rows(two_step(scores, forced, self.beta, self.factor), sinks)
        return mix(softmax_rows(scores, sinks), scores, forced, self.weight, self.temperature)


def two_step(scores: Tensor, forced: Tensor, beta: float, factor: float) -> Tensor:
    """Scores with the forced positions raised (Kahardipraja et al. 2025, section 6; constants and exact form are ours).

    s_j + beta max(0, max_k s_k) for the forced j, and then, where that is above 0, `factor` times it.

    Args:
        scores: [..., S] float32, -inf where a row may not look.
        forced: Bool, of a shape that goes with the scores.
        beta: At least 0.
        factor: At least 1.

    Returns:
        [..., S]; what may not be seen stays unseen.
    """
    raised = scores + beta * scores.amax(dim=-1, keepdim=True).clamp(min=0)
    return torch.where(forced, torch.where(raised > 0, factor * raised, raised), scores)


def mix(weights: Tensor, scores: Tensor, forced: Tensor, weight: float, temperature: float) -> Tensor:
    """Weights of which a share goes to the forced positions: (1 - w) A + w softmax over the forced j of temperature s_j.

    Args:
        weights: [..., S] of the plain softmax.
        scores: [..., S] float32, -inf where a row may not look.
        forced: Bool, of a shape that goes with the scores.
        weight: w, in [0, 1].
        temperature: Above 0.

    Returns:
        [..., S]; rows that see no forced position keep their weights.
    """
    pulled = (scores * temperature).masked_fill(~forced, -torch.inf)
    none = pulled.amax(dim=-1, keepdim=True).isneginf()
    own = pulled.masked_fill(none, 0).softmax(dim=-1)
    return torch.where(none, weights, (1 - weight) * weights + weight * own)


class Copying:
    """Step: the rows of the answer attend once more in the chosen heads, with the forced positions.

    Args:
        heads: Layer -> its chosen heads.
        spans: Forced positions [start, stop) of each batch row; one entry for all rows.
        force: How.
        answer_from: See `AnswerRows`.
    """

    def __init__(self, heads: Mapping[int, list[int]], spans: Sequence[Spans], force: Force, answer_from: int | None) -> None:
        self._heads, self._spans, self._force = heads, spans, force
        self._rows, self._first = AnswerRows(answer_from, ASKER), checked_position(answer_from) or 0

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: which of its rows belong to the answer, and whether the spans lie in its text.

        Raises:
            HeadwiseError: A span reaches behind the text, or onto padding; or as many rows of spans as the batch has not.
        """
        self._rows.begin(now)
        batch = None if now.inputs is None else now.inputs.shape[0]
        if batch is not None and len(self._spans) not in (1, batch):
            raise HeadwiseError(f"spans of {len(self._spans)} rows for a batch of {batch} rows; give one list, or one per row")
        length = now.before + (0 if now.inputs is None else now.inputs.shape[1])
        padded = isinstance(now.mask, Tensor) and now.mask.dim() == 2 and now.mask.shape[1] == length and not bool(now.mask.all())
        for row in range(batch or 0):
            for start, stop in self._of(row):
                if (
                    stop > length > self._first and now.ends_prompt is not False
                ):  # else the text goes on before anything is forced
                    raise HeadwiseError(f"span [{start}, {stop}) reaches behind the text of {length} tokens")
                if padded and not bool(now.mask[row, start:stop].all()):
                    raise HeadwiseError(f"span [{start}, {stop}) of row {row} lies on padding; give each row spans of its own")

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Recompute the chosen heads in the rows of the answer.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where nothing is forced.

        Raises:
            HeadwiseError: A compressed cache has dropped a forced position, or its rows have padding.
        """
        chosen = self._heads.get(call.layer)
        if not chosen or self._force.is_idle:
            return output
        rows, total = self._rows.chosen(call), call.query.shape[2]
        columns = None if rows is None else rows.any(dim=0).nonzero()
        if columns is not None and not len(columns):
            return output
        first = 0 if columns is None else int(columns[0])
        parts = call.source.parts(total, call.start + total)
        each = call.query.shape[1] // sum(part.keys[0].shape[1] for part in parts)
        out = output.clone()
        for part in parts:
            for own, groups in part_heads(part, chosen, each):
                forced = self._forced(call, part, groups, each)
                step = max(1, BLOCK // (part.length * len(output)))
                for low in range(first, total, step):
                    place = slice(low, min(low + step, total))
                    again = self._attend(call, part, place, own, groups, forced).to(out.dtype)
                    if rows is not None:
                        again = torch.where(rows[:, place, None, None], again, out[:, place, own])
                    out[:, place, own] = again
        return out

    def _of(self, row: int) -> Spans:
        return self._spans[row if len(self._spans) > 1 else 0]

    def _forced(self, call: Call, part: KeyPart, groups: slice, each: int) -> Tensor:
        """[B or 1, 1 or n x each, 1, S] bool: the forced keys. Raises `HeadwiseError` if a compressed cache has dropped one of them."""
        places = key_positions(part, call.query.device)
        places = places if places.shape[1] == 1 else places[:, groups]
        rows = len(self._spans)
        forced = torch.cat(
            [inside_spans(places if len(places) == 1 else places[row : row + 1], self._of(row)) for row in range(rows)]
            if rows > 1
            else [inside_spans(places, self._spans[0])]
        )
        if not isinstance(call.source, Whole):
            wanted = [sum(stop - start for start, stop in merged(self._of(row))) for row in range(len(forced))]
            missing = (forced.sum(dim=-1) < torch.tensor(wanted, device=forced.device)[:, None]).any()
            if bool(missing):
                raise HeadwiseError(
                    f"layer {call.layer}: the compressed cache has dropped positions that copying is forced to; use a full cache"
                )
        forced = forced if forced.shape[1] == 1 else forced.repeat_interleave(each, dim=1)
        return forced[:, :, None]

    def _attend(self, call: Call, part: KeyPart, place: slice, own: Pick, groups: slice, forced: Tensor) -> Tensor:
        """[B, R, h, width of values] float32 of some rows and heads."""
        query = call.query[:, own, place]
        keys = Keys(tuple(segment[:, groups] for segment in part.keys))
        values = Keys(tuple(segment[:, groups] for segment in part.values))
        mask = additive(call, part, place, groups, torch.zeros(1, 1, part.length, device=query.device))
        mask = mask if mask.shape[1] == 1 else mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
        everything = torch.ones(1, 1, 1, part.length, dtype=torch.bool, device=query.device)
        blocks = visible_logits(query, keys, call.scaling, everything, call.softcap, part.length)
        scores = torch.cat([block for _, block in blocks], dim=-1)
        unseen = mask <= torch.finfo(call.query.dtype).min / 2
        scores = (scores + mask.masked_fill(unseen, 0)).masked_fill(unseen, -torch.inf)
        sinks = None if call.sinks is None else call.sinks[own]
        return weighted(self._force.weights(scores, forced, sinks), values).transpose(1, 2)


def merged(spans: Spans) -> list[tuple[int, int]]:
    """The same positions as spans that do not overlap, in order."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


@contextmanager
def force_copy(
    model: Any,
    heads: Heads,
    spans: Spans | Sequence[Spans],
    how: str = "two_step",
    *,
    beta: float = 0.5,
    factor: float = 2.0,
    weight: float = 0.9,
    temperature: float = 1.5,
    answer_from: int | None = None,
) -> Iterator[None]:
    """Inside the block the chosen heads read `spans` at each row's last real prompt token and everywhere behind it.

    Only those rows of those heads are computed once more; everything else runs as usual, over any cache that holds the spans. Heads of a sliding
    window that no longer sees them stay as they are.

    Args:
        model: A `Model`, or a transformers model.
        heads: The heads; at least one.
        spans: Forced key positions [start, stop), padding counted; or one such list per batch row.
        how: `two_step`: scores s_j of forced positions become s_j + beta max(0, highest score of the row), and then, where above 0, `factor`
            times that. Multiplying depends on where the zero of the scores lies, which a softmax does not. `mix`: the weights become
            (1 - weight) A + weight softmax(temperature s) over the forced positions.
        beta: For `two_step`, at least 0.
        factor: For `two_step`, at least 1.
        weight: For `mix`, in [0, 1].
        temperature: For `mix`, above 0.
        answer_from: Position of the last prompt token, padding counted, where the passes do not tell (see `AnswerRows`).

    Yields:
        Nothing; after the block the model is what it was, bit for bit.

    Raises:
        HeadwiseError: No heads or spans, options out of range; and in a pass whose text does not hold the spans, whose answer rows are not known,
            or over a compressed cache that has dropped some of them.
    """
    force = Force(how, beta, factor, weight, temperature)
    given = _rows_of(spans)
    with attached(model) as plan:
        chosen = plan.model.by_layer(some_heads(plan, heads))
        with plan.running(Copying(chosen, given, force, answer_from)):
            yield


def _rows_of(spans: Any) -> list[Spans]:
    """Spans by row; one entry for all rows. Raises `HeadwiseError` for anything but spans."""
    try:
        given = list(spans)
        one = bool(given) and isinstance(given[0][0], SupportsIndex)
        rows: list[Spans] = [[(index(start), index(stop)) for start, stop in row] for row in ([given] if one else given)]
    except (TypeError, ValueError, IndexError) as error:
        raise HeadwiseError("spans must be pairs of positions [(start, stop), ...], or one such list per batch row") from error
    if not rows or not all(rows):
        raise HeadwiseError("copying needs at least one span [start, stop) to read, in every row")
    for row in rows:
        check_spans(row)
    return rows
