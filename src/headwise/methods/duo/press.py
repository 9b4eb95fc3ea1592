"""DuoAttention (Xiao et al. 2024, arXiv:2410.10819): retrieval heads keep the whole text, streaming heads the first and the most recent tokens.

Differences from the released code are listed in docs/methods/duoattention.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.caches.patterns import StreamingPattern
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.maths.gates import Pattern, binarise, kv_gates
from headwise.models.model import Model


@dataclass(frozen=True, eq=False)
class DuoAttention(StreamingPattern):
    """The retrieval heads keep the whole text, the others a window (section 2 of the paper).

    Attributes:
        heads: Gates, or a table [layers, KV heads] of True (retrieval heads) and False.
        ties: Scores of the same model that decide between equal gates.

    The others: see `StreamingPattern`; `keep` is a share of all KV heads of layers with full attention.
    """

    heads: HeadScores | NDArray[np.bool_]
    ties: HeadScores | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.heads, HeadScores) and (np.ndim(self.heads) != 2 or np.asarray(self.heads).dtype != np.bool_):
            raise HeadwiseError("heads must be gates, or a table [layer, KV head] of True (retrieval heads) and False")

    def pattern(self, model: Model) -> Pattern:
        """The given table, or the share `keep` of the heads with the highest gates, in layers with full attention.

        Returns:
            `kept` is [full layers, KV heads].

        Raises:
            HeadwiseError: Heads or `ties` of another model, or gates that rank nothing.
        """
        (layers, heads), kv_heads, full = model.heads.shape, model.heads.kv_heads, model.heads.full_layers
        if not isinstance(self.heads, HeadScores):
            table = np.asarray(self.heads)
            if table.shape != (layers, kv_heads):
                raise HeadwiseError(
                    f"a pattern of {table.shape[0]} layers x {table.shape[1]} KV heads for {model.name}, which has {layers} x {kv_heads}"
                )
            return Pattern(table[full], 0, float("nan"))
        gates = kv_gates(self.heads, layers, heads, kv_heads, model.name)[full]
        averaged = self.heads.tables.get("mean_gates")
        retrieval = None
        if self.ties is not None:
            HeadSet((), self.ties.shape).check_fits(model.heads.shape, model.name, "the scores that decide ties")
            retrieval = np.nan_to_num(self.ties.values).reshape(layers, kv_heads, -1).mean(axis=2)[full]
        return binarise(gates, self.keep, None if averaged is None else averaged[full], retrieval)

    def describe(self, model: Model) -> dict[str, Any]:
        """See `StreamingPattern`, with the retrieval heads of each layer."""
        rows = zip(model.heads.full_layers, self.pattern(model).kept, strict=True)
        return super().describe(model) | {"retrieval_heads": {str(layer): np.flatnonzero(row).tolist() for layer, row in rows}}
