"""Layer-exclusive streaming, after ZigzagAttention (Liu et al. 2025, arXiv:2508.12407): a layer keeps the whole text, or sinks and recent tokens.

Only the paper's abstract was to be had, so the rules that choose the layers are ours: see docs/methods/zigzagattention.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwise.core import HeadScores, HeadwiseError
from headwise.engine.streaming import StreamingPattern
from headwise.families import Layout
from headwise.maths.gates import Pattern, kv_gates
from headwise.maths.patterns import RULES, layer_pattern


@dataclass(frozen=True, eq=False)
class ZigzagAttention(StreamingPattern):
    """heads: gates, or the retrieval layers themselves. keep: share of retrieval layers among those with full attention.

    rule: `Z1` to `Z4`, see `layer_pattern` (a pattern measured with Z5 is given as layers). The rest: see `StreamingPattern`.
    """

    heads: HeadScores | Sequence[int]
    rule: str = "Z1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in RULES or self.rule == "Z5":
            raise HeadwiseError(f"rule {self.rule!r} is none of Z1 to Z4; give the layers that Z5 has found instead")

    def pattern(self, layout: Layout) -> Pattern:
        """The retrieval layers among those with full attention, bool. Raises `HeadwiseError` for gates or layers of another model."""
        full = layout.full_layers
        if not isinstance(self.heads, HeadScores):
            wrong = sorted({int(layer) for layer in self.heads} - set(full))
            if wrong:
                raise HeadwiseError(f"layer {wrong[0]} of {layout.name} is no layer with full attention; those are {full}")
            return Pattern(np.isin(full, [int(layer) for layer in self.heads]), 0, float("nan"))
        gates = kv_gates(self.heads, *layout.shape, layout.kv_heads, layout.name)
        return layer_pattern(gates[full], self.keep, self.rule)

    def describe(self, layout: Layout) -> dict[str, Any]:
        """See `StreamingPattern`, with the rule and the retrieval layers."""
        kept = zip(layout.full_layers, self.pattern(layout).kept, strict=True)
        rule = self.rule if isinstance(self.heads, HeadScores) else None
        return super().describe(layout) | {"rule": rule, "retrieval_layers": [layer for layer, whole in kept if whole]}
