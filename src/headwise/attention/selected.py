"""What a sparse step reads in place of all keys, and what has been read and moved so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headwise.attention.call import KeyPart
from headwise.maths.attend import attend_held


class Found(NamedTuple):
    """How good a choice is, forced positions left out of everything; means over batch rows and KV heads, all in [0, 1].

    Attributes:
        recall: Share of the positions with most attention that are chosen, of as many as are chosen.
        mass: Share of the attention that falls on what is chosen.
        chance: What both would be for as many positions at random.
    """

    recall: float
    mass: float
    chance: float


@dataclass
class Counts:
    """What a block has done so far; all sums are over sparse steps, layers, KV heads and batch rows alike.

    Attributes:
        steps: Passes of one token.
        sparse_steps: Those in which some layer read less than everything.
        read, whole: Positions read, and positions there were, in layers that were asked to read less.
        moved: Positions copied to slots (or gathered) for these.
        chosen_by: Bytes that the chooser read to choose, beside what attention read (`Chooser.reads`).
        kept: Positions chosen at a step that were chosen at the step before, of `compared`.
        compared: See `kept`.
        chance: What `kept` would be if positions were chosen at random.
        row_bytes: Bytes of one key and one value of one KV head.
        found: How good the chooser's first choice was, or None.
        note: Why the chooser is not used any more, or nothing.
    """

    steps: int = 0
    sparse_steps: int = 0
    read: int = 0
    whole: int = 0
    moved: int = 0
    chosen_by: int = 0
    kept: float = 0.0
    compared: int = 0
    chance: float = 0.0
    row_bytes: int = 0
    found: Found | None = None
    note: str = ""

    def summary(self) -> dict[str, Any]:
        """Shares in [0, 1] (None before the first sparse step), and bytes per sparse step."""
        steps = self.sparse_steps
        return {
            "steps": self.steps,
            "sparse_steps": steps,
            "read_share": self.read / self.whole if self.whole else None,
            "moved_share": self.moved / self.read if self.read else None,
            "overlap": self.kept / self.compared if self.compared else None,
            "overlap_by_chance": self.chance / self.compared if self.compared else None,
            "bytes_read_per_step": self.read * self.row_bytes / steps if steps else None,
            "bytes_moved_per_step": self.moved * self.row_bytes / steps if steps else None,
            "bytes_chosen_by_per_step": self.chosen_by / steps if steps else None,
            "recall": self.found.recall if self.found else None,
            "mass": self.found.mass if self.found else None,
            "by_chance": self.found.chance if self.found else None,
            "note": self.note,
        }


@dataclass(frozen=True)
class Selected:
    """The keys that a step reads, in place of all of them; order does not matter to attention, positions are in the keys already.

    Attributes:
        keys, values: [B, G, n, d].
        mask: [B, G, n] bool, False for places that hold nothing; None if there are none.
        positions: [B, G, n] int64, -1 for nothing; on the host where all positions are kept there.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    positions: Tensor

    def attend(self, query: Tensor, *, scaling: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
        """See `KeyProvider.attend`; `query` is one row."""
        mask = None if self.mask is None else self.mask[:, :, None]
        return attend_held(query, self.keys, self.values, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)

    def parts(self, rows: int, stop: int) -> Sequence[KeyPart]:
        """See `KeyProvider.parts`."""
        mask = None if self.mask is None else self.mask[:, :, None]
        return (KeyPart(None, (self.keys,), (self.values,), mask, self.positions.to(self.keys.device, torch.int32)),)
