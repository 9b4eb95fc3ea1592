"""Attention over the parts that a layer of a compressed cache holds: one call per group of KV heads, one call in all if there is one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from headwise.attention.call import KeyPart
from headwise.caches.groups import Part, seen_mask
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import attend_held
from headwise.maths.sink_window import sink_window_attention


@dataclass(frozen=True)
class Held:
    """The `KeyProvider` that a cache layer hands to the attention function in place of keys and values.

    Attributes:
        held: Its parts, every KV head once.
        padded: Rows have counted without padding, so their positions are not those of the batch.
    """

    held: tuple[Part, ...]
    padded: bool

    @property
    def shape(self) -> NoReturn:
        """Other attention functions read this first. Always raises `HeadwiseError`."""
        raise HeadwiseError("a compressed cache works only inside the `compress` block of its model")

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
        """Softmax attention over the parts; query head h reads KV head h // (H / KV heads).

        Args:
            query: [B, H, T, d] after rotation.
            scaling: Factor of query times key.
            softcap: As in `maths.attend.attend`.
            sinks: [H], as there.

        Returns:
            [B, T, H, d] in the query's dtype.
        """
        if len(self.held) == 1 and self.held[0].heads is None:
            return _attend_part(query, self.held[0], scaling, softcap, sinks)
        groups = sum(part.keys.shape[1] for part in self.held)
        each = query.shape[1] // groups
        grouped = query.reshape(query.shape[0], groups, each, *query.shape[2:])
        sinks = None if sinks is None else sinks.view(groups, each)
        out = query.new_empty(query.shape[0], query.shape[2], groups, each, self.held[0].values.shape[-1])
        for part in self.held:
            chosen = slice(None) if part.heads is None else part.heads
            own = None if sinks is None else sinks[chosen].flatten()
            found = _attend_part(grouped[:, chosen].flatten(1, 2), part, scaling, softcap, own)
            out[:, :, chosen] = found.view(*found.shape[:2], -1, each, found.shape[-1])
        return out.flatten(2, 3)

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """What the newest rows attend to, with the position in the text of every key.

        Args:
            rows: How many of the newest query rows.
            stop: Not used: a part is given whole, whatever its last row.

        Returns:
            One entry per group of KV heads.

        Raises:
            HeadwiseError: The batch has padding.
        """
        if self.padded:
            raise HeadwiseError(
                "positions in a compressed cache do not count padding, so batches with padding cannot be observed or steered there; "
                "give rows of equal length"
            )
        return [_key_part(part, rows) for part in self.held]


def _key_part(part: Part, rows: int) -> KeyPart:
    mask = None if part.mask is None else part.mask[:, :, -rows:]
    if part.window is not None:  # the keys of a whole text
        places = torch.arange(part.keys.shape[2], device=part.keys.device).view(1, 1, -1)
        mask = seen_mask(places, places[..., -rows:], part.window)
    return KeyPart(part.heads, (part.keys,), (part.values,), mask, part.positions)


def _attend_part(query: Tensor, part: Part, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
    if part.window is not None and (query.shape[2] > 1 or softcap is not None or sinks is not None):
        return sink_window_attention(
            query, part.keys, part.values, **part.window._asdict(), scaling=scaling, softcap=softcap, sink_logits=sinks
        )
    return attend_held(query, part.keys, part.values, scaling=scaling, mask=part.mask, softcap=softcap, sinks=sinks)
