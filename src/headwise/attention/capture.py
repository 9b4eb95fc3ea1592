"""Capturing queries and keys as attention uses them, for losses on them and for other measures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, Heads, HeadSet

NOT_SEEN = (
    "the question's rows do not see all of its passages: these are padding, or the layer has a sliding window; "
    "choose heads of layers that see the whole text"
)


class Captured(NamedTuple):
    """One layer of the latest pass, after position encoding and query and key norms; with gradients unless they are switched off.

    Attributes:
        query: [B, H, T, d].
        keys: Segments [B or 1, G, S_i, d], older positions first.
        scaling: Factor of query times key.
        output: [B, T, H, d] of all heads, in front of the output projection.
        mask: [B or 1, 1, T, S] bool, True = visible; None: causal.
        softcap: Cap of the logits; see `row_statistics`.
        sinks: [H], sink logits; see `row_statistics`.
    """

    query: Tensor
    keys: tuple[Tensor, ...]
    scaling: float
    output: Tensor
    mask: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def past(self) -> int:
        """Positions in front of the first query row, S - T."""
        return sum(segment.shape[2] for segment in self.keys) - self.query.shape[2]

    def of_heads(self, row: int, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Queries and keys of some heads in one row of the batch; KV head h // (H / G) belongs to query head h.

        Args:
            row: Of the batch.
            heads: n query heads.

        Returns:
            ([n, T, d], [n, S, d]) float32.
        """
        group = self.query.shape[1] // self.keys[0].shape[1]
        own = [head // group for head in heads]
        keys = [segment[row if len(segment) > 1 else 0][own] for segment in self.keys]
        return self.query[row][list(heads)].float(), (keys[0] if len(keys) == 1 else torch.cat(keys, dim=1)).float()

    def sees(self, row: int, position: int, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether a query row sees every key of some spans.

        Args:
            row: Of the batch.
            position: Of the query row in the text.
            spans: Ranges [start, stop) of key positions.
        """
        if self.mask is None:
            return all(stop <= position + 1 for _, stop in spans)
        (visible,) = self.visible(row, slice(position - self.past, position - self.past + 1))[0, 0]
        return bool(torch.stack([visible[start:stop].all() for start, stop in spans]).all())

    def visible(self, row: int, rows: slice) -> Tensor:
        """What some query rows may see.

        Args:
            row: Of the batch.
            rows: Of the T query rows.

        Returns:
            [1, 1, rows, S] bool.
        """
        if self.mask is not None:
            own = row if len(self.mask) > 1 else 0
            return self.mask[own : own + 1, :, rows]
        keys = torch.arange(self.past + self.query.shape[2], device=self.query.device)
        return (keys <= keys[self.past :][rows, None])[None, None]


class Capture:
    """Look: layer -> what it used in the latest pass. Tensors are kept as they are, so a long text costs its keys and outputs of these layers.

    Args:
        layers: Those to keep; None: all.
    """

    def __init__(self, layers: Collection[int] | None = None) -> None:
        self.by_layer: dict[int, Captured] = {}
        self._layers = layers

    def look(self, call: Call) -> None:
        """Keep one layer."""
        if self._layers is None or call.layer in self._layers:
            self.by_layer[call.layer] = Captured(
                call.query, call.keys, call.scaling, call.output, call.visible, call.softcap, call.sinks
            )

    def for_loss(self, heads: Iterable[HeadId]) -> list[tuple[Captured, list[int]]]:
        """What the layers of some heads used, for a loss on it.

        Args:
            heads: At least one.

        Returns:
            Per layer, ascending: what it used, and its heads among these in ascending order.

        Raises:
            HeadwiseError: The pass had no such head, or it was cut off from the gradients that are to be computed.
        """
        chosen = sorted(heads)
        for head in chosen:
            if head.layer not in self.by_layer or head.head >= self.by_layer[head.layer].query.shape[1]:
                raise HeadwiseError(f"the pass has no attention head {head}; run the model inside the block, at least up to layer {head.layer}")
        layers = sorted({head.layer for head in chosen})
        for layer in layers:
            seen = self.by_layer[layer]
            if torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in (seen.query, *seen.keys)):
                raise HeadwiseError(
                    f"queries and keys of layer {layer} have no gradient, so a loss on them would train nothing: nothing below is trained, or "
                    "gradient checkpointing is re-entrant (give it use_reentrant=False)"
                )
        return [(self.by_layer[layer], [head.head for head in chosen if head.layer == layer]) for layer in layers]


def chosen_heads(heads: Heads) -> tuple[HeadId, ...]:
    """Heads for a loss, in the order of layers and heads. Which heads the model has is known when it runs.

    Raises:
        HeadwiseError: There are none, or they are no heads.
    """
    found = heads if isinstance(heads, HeadSet) else HeadSet.of(heads, (1000, 1000))
    if not found.heads:
        raise HeadwiseError("no heads were given to train; choose some, for example scores.top(8)")
    return tuple(sorted(found))


@contextmanager
def capture(model: Any, layers: Collection[int] | None = None) -> Iterator[Capture]:
    """Inside the block the queries, keys and outputs of every pass can be read from the yielded object.

    With gradient checkpointing use the non-reentrant form, and run the backward pass inside the block, because it runs layers again: the
    re-entrant form cuts these tensors off from the loss.

    Args:
        model: A `Model`, or a transformers model.
        layers: Those that are kept; None: all.

    Raises:
        HeadwiseError: In a pass over a compressed cache, which does not hold all keys.
    """
    captured = Capture(layers)
    with attached(model) as plan, plan.running(captured):
        yield captured
