"""Hiding: chosen heads do not see chosen positions of the text from any row behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from headwise.attention.ablate import ByRow, head_masks, scope_rows
from headwise.attention.again import BLOCK, Pick, additive, attend_again, check_spans, inside_spans, key_positions, part_heads
from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call, KeyPart, Pass
from headwise.attention.plan import attached
from headwise.heads.types import Heads, HeadSet


class Hiding:
    """Step: takes spans of keys away from heads.

    Args:
        masks: [V or 1, L, H] bool, heads that do not see the spans: V variants, one per batch row, or one for all.
        spans: Key positions [start, stop).
        rows: Who follows the rows of the answer; None: all rows.
    """

    def __init__(self, masks: Tensor, spans: Sequence[tuple[int, int]], rows: AnswerRows | None) -> None:
        self._masks, self._spans, self._rows = ByRow(masks), tuple(spans), rows
        self._layers = set(masks.any(dim=2).any(dim=0).nonzero().flatten().tolist())

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: which of its rows belong to the answer."""
        if self._rows is not None:
            self._rows.begin(now)

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Attend once more for the rows and heads that something is hidden from, and put their outputs in place.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype; the very same tensor where nothing is hidden.

        Raises:
            HeadwiseError: A pass over a compressed cache whose rows have padding; rows of the answer are not known; or there is one set of heads
                per row and another number of rows.
        """
        count = call.query.shape[2]
        stretches = self._stretches(call.start, count)
        if call.layer not in self._layers or not stretches:
            return output
        variants = _same_heads(self._masks.of(call))
        inside = None if self._rows is None else self._rows.chosen(call)
        parts = call.source.parts(count, call.start + count)
        each = call.query.shape[1] // sum(part.keys[0].shape[1] for part in parts)
        out = output.clone()
        for part in parts:
            positions, step = key_positions(part, call.query.device), max(1, BLOCK // part.length)
            for first, stop, hidden in stretches:
                columns = inside_spans(positions, hidden)
                if not bool(columns.any()):
                    continue  # the layer no longer holds any of them
                bias = torch.zeros(columns.shape, device=columns.device).masked_fill_(columns, -torch.inf)
                for low in range(first, stop, step):
                    place = slice(low, min(low + step, stop))
                    for batch, chosen in variants:
                        for own, groups in part_heads(part, chosen, each):
                            self._put(call, out, part, place, own, groups, bias, batch, inside)
        return out

    def _stretches(self, start: int, count: int) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Rows [first, stop) of a pass of `count` rows that begins at `start`, and the spans that end in front of them."""
        ends = sorted({stop for _, stop in self._spans})
        places = [min(max(end - start, 0), count) for end in ends] + [count]
        found = [(a, b, [s for s in self._spans if s[1] <= end]) for end, (a, b) in zip(ends, pairwise(places), strict=True)]
        return [stretch for stretch in found if stretch[0] < stretch[1]]

    def _put(
        self,
        call: Call,
        out: Tensor,
        part: KeyPart,
        place: slice,
        heads: Pick,
        groups: slice,
        bias: Tensor,
        batch: Pick,
        inside: Tensor | None,
    ) -> None:
        """Attend for some rows and heads and write what they give; rows out of scope, or that see nothing else, keep what is there."""
        mask = additive(call, part, place, groups, bias)
        seen = (mask > torch.finfo(call.query.dtype).min / 2).any(dim=-1)  # [B or 1, 1 or n, R]
        again = attend_again(call, part, place, heads, groups, mask, batch).to(out.dtype)
        seen = seen.repeat_interleave(again.shape[2] // seen.shape[1], dim=1).transpose(1, 2)[..., None]
        if inside is not None:
            seen = seen & inside[:, place, None, None]
        seen = seen[batch] if len(seen) > 1 else seen
        rows: Any = torch.arange(len(out), device=out.device)[batch][:, None, None]
        columns: Any = torch.arange(out.shape[2], device=out.device)[heads]
        places = torch.arange(place.start, place.stop, device=out.device)[:, None]
        out[rows, places, columns] = torch.where(seen, again, out[rows, places, columns])


def _same_heads(masks: Tensor) -> list[tuple[Pick, list[int]]]:
    """Batch rows and their chosen heads: rows with the same heads go together, those without any are left out. masks: [V or 1, H] bool."""
    if len(masks) == 1:
        return [(slice(None), masks[0].nonzero().flatten().tolist())]
    found: dict[tuple[int, ...], list[int]] = {}
    for row, mask in enumerate(masks.tolist()):
        chosen = tuple(head for head, taken in enumerate(mask) if taken)
        if chosen:
            found.setdefault(chosen, []).append(row)
    return [(rows, list(chosen)) for chosen, rows in found.items()]


@contextmanager
def hide(
    model: Any,
    heads: Heads | Sequence[HeadSet],
    spans: Sequence[tuple[int, int]],
    scope: str = "all",
    answer_from: int | None = None,
) -> Iterator[None]:
    """Inside the block the chosen heads do not see the spans from any row behind them: these keys get no weight, the others share all of it.

    A row at position p does not see a span [start, stop) with stop <= p. Rows inside a span and in front of it stay as they are, so a row never
    loses its own position. Passes may come in any pieces, over any cache; over a compressed one the positions that a head still holds are
    hidden, and a head that holds nothing else keeps its output. The chosen heads attend anew: give all spans of a head in one block, and open
    blocks that change its output (`ablate`, `scale`) inside of this one.

    Args:
        model: A `Model`, or a transformers model.
        heads: One set (whatever `HeadSet.of` takes), or one `HeadSet` per batch row (every pass inside the block must then have that many rows;
            a set may be empty).
        spans: Key positions [start, stop), the same in all batch rows (padding counts); none hides nothing.
        scope: `all` rows behind a span, or `answer`: those of them that belong to the answer, see `ablate`.
        answer_from: See `ablate`.

    Yields:
        Nothing; after the block the model is what it was.

    Raises:
        HeadwiseError: Heads of another model, a span without positions, an unknown scope; in a pass over a compressed cache whose rows have
            padding, one whose answer rows are not known, or one with another number of rows than sets.
    """
    check_spans(spans)
    with attached(model) as plan:
        step = Hiding(head_masks(plan.model, heads), spans, scope_rows(scope, answer_from))
        with plan.running(step):
            yield
