"""What blocks that change heads have in common: which heads in which batch rows, and in which rows of the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.answer import AnswerRows
from headwise.attention.call import Call
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet
from headwise.models.model import Model

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
