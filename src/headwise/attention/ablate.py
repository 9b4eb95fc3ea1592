"""Ablation of heads in four modes and two scopes, one variant per batch row if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call, KeyProvider, Pass
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads, HeadSet
from headwise.models.model import Model

MODES = ("zero", "uniform", "mean", "resample")
SCOPES = ("all", "answer")


def head_masks(model: Model, heads: Any) -> Tensor:
    """The chosen heads as a table.

    Args:
        model: The model.
        heads: One set (whatever `HeadSet.of` takes), or a list of one `HeadSet` per batch row.

    Returns:
        [V, L, H] bool: V sets, 1 for one set.

    Raises:
        HeadwiseError: They are no heads of this model.
    """
    per_row = isinstance(heads, list | tuple) and bool(heads) and all(isinstance(chosen, HeadSet) for chosen in heads)
    given: Any = heads if per_row else [heads]
    return torch.from_numpy(np.stack([model.check(chosen).mask() for chosen in given]))


def scope_rows(scope: str, answer_from: int | None) -> AnswerRows | None:
    """Who follows the rows of a scope; None for `all`.

    Raises:
        HeadwiseError: An unknown scope.
    """
    if scope not in SCOPES:
        raise HeadwiseError(f"unknown scope {scope!r}; use {', '.join(SCOPES)}")
    return None if scope == "all" else AnswerRows(answer_from)


class ByRow:
    """A table with one entry per set of heads, for all batch rows or one per row, wherever the layers of the model lie.

    Args:
        table: [V, L, ...].
    """

    def __init__(self, table: Tensor) -> None:
        self._tables = {table.device: table}

    def of(self, call: Call) -> Tensor:
        """[V, ...] of the layer of a call, on its device.

        Raises:
            HeadwiseError: Neither one set nor one per batch row.
        """
        table = on_device(self._tables, call.query.device)
        batch = call.query.shape[0]
        if len(table) not in (1, batch):
            raise HeadwiseError(f"{len(table)} sets of heads for a batch of {batch} rows; give one, or one per row")
        return table[:, call.layer]


class ByFirstRows(ByRow):
    """The same where a layer may run fewer rows than there are sets: its rows belong to the first ones (see `staggered`)."""

    def of(self, call: Call) -> Tensor:
        """[B, ...] of the layer of a call with B rows, on its device."""
        return on_device(self._tables, call.query.device)[: call.query.shape[0], call.layer]


def on_device(tensors: dict[torch.device, Tensor], device: torch.device) -> Tensor:
    """The tensor on a device, copied there once. A model may lie on several."""
    if device not in tensors:
        tensors[device] = next(iter(tensors.values())).to(device)
    return tensors[device]


class Ablation:
    """Step: what happens to the chosen heads.

    Args:
        mask: [V or 1, L, H] bool: V variants, one per batch row, or one for all.
        mode: `zero` (output 0), `uniform` (query 0: the mean of the visible values), `mean` (output `means`), `resample` (the row at position p
            gets sample p modulo N).
        scope: `all` rows, or those of the `answer`.
        answer_from: First position of scope `answer`, padding counted; None: see `AnswerRows`.
        means: [L, H, d], for mode `mean` only.
        samples: [N, L, H, d], for mode `resample` only.
        by_row: How batch rows find their variant in the mask.

    Raises:
        HeadwiseError: An unknown mode or scope; means or samples without their mode or the other way round.
    """

    def __init__(
        self,
        mask: Tensor,
        mode: str,
        scope: str,
        answer_from: int | None,
        means: Tensor | None = None,
        samples: Tensor | None = None,
        by_row: type[ByRow] = ByRow,
    ) -> None:
        if mode not in MODES:
            raise HeadwiseError(f"unknown ablation mode {mode!r}; use {', '.join(MODES)}")
        self._rows = scope_rows(scope, answer_from)
        if (mode == "mean") != (means is not None):
            raise HeadwiseError("mode 'mean' needs calibrated means (see head_means), and only mode 'mean' takes them")
        if (mode == "resample") != (samples is not None):
            raise HeadwiseError(
                "mode 'resample' needs outputs of other text (see head_samples), and only mode 'resample' takes them"
            )
        self._mode = mode
        self._layers = set(mask.any(dim=2).any(dim=0).nonzero().flatten().tolist())
        self._masks = by_row(mask)
        filling = means[None] if means is not None else samples
        self._filling = {} if filling is None else {filling.device: filling}  # [N, L, H, d]

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: which of its rows belong to the answer."""
        if self._rows is not None:
            self._rows.begin(now)

    def edit_inputs(self, call: Call) -> tuple[Tensor, KeyProvider]:
        """Zero the query of the chosen heads in mode `uniform`."""
        if self._mode != "uniform" or call.layer not in self._layers:
            return call.query, call.source
        chosen = self._masks.of(call)[:, :, None, None]
        rows = self._answer(call)
        return call.query.masked_fill(chosen if rows is None else chosen & rows[:, None, :, None], 0), call.source

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Replace the output of the chosen heads in modes `zero`, `mean` and `resample`.

        Args:
            call: The attention call of one layer.
            output: [B, T, H, d]; it is not changed in place.

        Returns:
            [B, T, H, d] in the same dtype.

        Raises:
            HeadwiseError: Scope `answer` in a pass whose answer rows are not known.
        """
        if self._mode == "uniform" or call.layer not in self._layers:
            return output
        chosen = self._masks.of(call)[:, None, :, None]
        rows = self._answer(call)
        if rows is not None:
            chosen = chosen & rows[:, :, None, None]
        if not self._filling:
            return output.masked_fill(chosen, 0)
        filling = on_device(self._filling, output.device)[:, call.layer]
        if len(filling) > 1:  # one for each position, so that a text read in pieces is ablated as one that is read at once
            filling = filling[torch.arange(call.start, call.start + output.shape[1], device=output.device) % len(filling)]
        return torch.where(chosen, filling.to(output.dtype), output)

    def _answer(self, call: Call) -> Tensor | None:
        """[B or 1, T] bool: rows inside the scope; None for all."""
        return None if self._rows is None else self._rows.chosen(call)


@contextmanager
def ablate(
    model: Any,
    heads: Heads | Sequence[HeadSet],
    mode: str = "zero",
    scope: str = "all",
    answer_from: int | None = None,
    means: Tensor | None = None,
    samples: Tensor | None = None,
) -> Iterator[None]:
    """Run the model without some heads inside the block: in forward passes and in `generate`, over any cache or none.

    Args:
        model: A `Model`, or a transformers model.
        heads: One set (whatever `HeadSet.of` takes: `[(5, 6)]` will do), or one `HeadSet` per batch row (every pass inside the block must then
            have that many rows; a set may be empty).
        mode: `zero` (output 0), `uniform` (query 0: the mean of the visible values), `mean` (output `means`), `resample` (an output that the
            head had in other text: the row at position p, padding counted, gets sample p modulo N).
        scope: `all` rows, or `answer`: each row's last real prompt token and everything behind it, whatever cache and padding.
        answer_from: Position of the last prompt token, padding counted, where the passes do not tell (see `AnswerRows`).
        means: [L, H, d] of `head_means`, for mode `mean` only.
        samples: [N, L, H, d] of `head_samples`, for mode `resample` only.

    Yields:
        Nothing; after the block the model is what it was.

    Raises:
        HeadwiseError: Heads of another model, options that do not go together; and in a pass whose answer rows are not known, or with another
            number of rows than sets.
    """
    with attached(model) as plan:
        mask = head_masks(plan.model, heads)
        with plan.running(Ablation(mask, mode, scope, answer_from, means, samples)):
            yield
