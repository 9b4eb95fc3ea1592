"""Layer-exclusive streaming, after ZigzagAttention (Liu et al. 2025, arXiv:2508.12407): a layer keeps the whole text, or sinks and recent tokens.

Only the paper's abstract was to be had, so the rules that choose the layers are ours: see docs/methods/zigzagattention.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwise.caches.patterns import StreamingPattern
from headwise.heads import HeadScores, HeadwiseError
from headwise.maths.gates import Pattern, highest, kept_count, kv_gates
from headwise.methods.zigzag.formula import RULES, layer_pattern
from headwise.models.model import Model

ORDER = "layer_order"  # table of gates [layer]: the place of each layer in the order in which they come to stream, from 0; NaN: it never does


@dataclass(frozen=True, eq=False)
class ZigzagAttention(StreamingPattern):
    """The retrieval layers keep the whole text, the others a window.

    Attributes:
        heads: Gates, or the retrieval layers themselves.
        rule: See `layer_pattern`. `Z5` needs gates that hold a measured order of layers (`headwise detect gate --layer-order`); a pattern that Z5
            has found may also be given as layers.

    The others: see `StreamingPattern`; `keep` is the share of retrieval layers among those with full attention.
    """

    heads: HeadScores | Sequence[int]
    rule: str = "Z1"

    def __post_init__(self) -> None:
        super().__post_init__()
        measured = isinstance(self.heads, HeadScores) and ORDER in self.heads.tables
        if self.rule not in RULES or (self.rule == "Z5" and not measured):
            raise HeadwiseError(
                f"rule {self.rule!r} is none of Z1 to Z4; give the layers that Z5 has found, or, for rule Z5, gates with a measured "
                "order of layers (headwise detect gate --layer-order)"
            )

    def pattern(self, model: Model) -> Pattern:
        """The retrieval layers among those with full attention.

        Returns:
            `kept` is bool [full layers].

        Raises:
            HeadwiseError: Gates, layers or an order of layers of another model, or gates that rank nothing.
        """
        full = model.heads.full_layers
        if not isinstance(self.heads, HeadScores):
            wrong = sorted({int(layer) for layer in self.heads} - set(full))
            if wrong:
                raise HeadwiseError(f"layer {wrong[0]} of {model.name} is no layer with full attention; those are {full}")
            return Pattern(np.isin(full, [int(layer) for layer in self.heads]), 0, float("nan"))
        gates = kv_gates(self.heads, *model.heads.shape, model.heads.kv_heads, model.name)
        if self.rule != "Z5":
            return layer_pattern(gates[full], self.keep, self.rule)
        places = self.heads.tables[ORDER]
        order = [int(layer) for layer in np.argsort(places, kind="stable") if not np.isnan(places[layer])]
        if sorted(order) != full:
            raise HeadwiseError(
                f"the order of layers {order} is none of {model.name}, whose layers with full attention are {full}"
            )
        kept = np.isin(full, order[len(full) - kept_count(self.keep, len(full)) :])
        return Pattern(kept, 0, highest(gates[full].clip(0, 1).mean(axis=1)[~kept]))

    def describe(self, model: Model) -> dict[str, Any]:
        """See `StreamingPattern`, with the rule and the retrieval layers."""
        kept = zip(model.heads.full_layers, self.pattern(model).kept, strict=True)
        rule = self.rule if isinstance(self.heads, HeadScores) else None
        return super().describe(model) | {"rule": rule, "retrieval_layers": [layer for layer, whole in kept if whole]}
