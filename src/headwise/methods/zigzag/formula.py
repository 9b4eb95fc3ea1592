"""Layer-exclusive patterns: every layer is a retrieval layer or a streaming layer as a whole.

The idea is ZigzagAttention's (Liu et al. 2025, arXiv:2508.12407). Its own criterion was not to be had (only the abstract was); these rules are ours,
Z3 after the calibration that LongCat ZigZag Attention describes (arXiv:2512.23966).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Scores
from headwise.maths.gates import Pattern, binarise, greedy_layers, highest, kept_count, strongest

RULES = ("Z1", "Z2", "Z3", "Z4", "Z5")
Layers = NDArray[np.bool_]


def layer_pattern(gates: Scores, keep: float, rule: str = "Z1", loss: Callable[[Layers], float] | None = None) -> Pattern:
    """Which layers are retrieval layers: round(keep x L) of them, at least 1.

    Ties go to the higher mean gate, then to the lower layer. Rules (ours, see the module):

    Z1: highest mean gate, so that least gate mass is given up.
    Z2: most retrieval heads in the head-level choice (`binarise`) of equally many heads, so that fewest heads change their type.
    Z3: as Z1, for gates that were trained one per layer (rows of equal gates, or one column).
    Z4: as Z1, for gates that were trained with the `group` penalty.
    Z5: measured: from all retrieval on, make that layer streaming which raises `loss` least, and again.

    Args:
        gates: [L, G], finite; rows are the layers to choose from. They count clamped to [0, 1].
        keep: Share of retrieval layers, in (0, 1].
        rule: `Z1` to `Z5`.
        loss: For Z5 only: bool [L] (True: retrieval) -> a number, smaller is better. Called once per layer left and step, so K of
            L kept layers cost (L - K)(L + K + 1) / 2 calls.

    Returns:
        `kept` is bool [L]; `cut` the highest mean gate that streams.

    Raises:
        HeadwiseError: An unknown rule, one with the wrong gates or loss, a keep out of range, or gates that rank nothing (all
            equal).
    """
    if rule not in RULES:
        raise HeadwiseError(f"unknown rule {rule!r} for layers; use {', '.join(RULES)}")
    if (rule == "Z5") != (loss is not None):
        raise HeadwiseError(f"rule Z5 measures a loss and needs one; the others take none; got rule {rule}")
    if not gates.size or gates.ndim != 2 or not np.isfinite(gates).all():
        raise HeadwiseError(
            "layers are chosen by a [layer, KV head] table of finite gates, one row per layer with full attention"
        )
    clamped = gates.clip(0, 1)
    means, raw, count = clamped.mean(axis=1), gates.mean(axis=1), kept_count(keep, len(gates))
    if loss is not None:
        return greedy_layers(means, count, loss)
    if means.min() == means.max() and len(gates) > 1:
        raise HeadwiseError(f"all {len(gates)} layers have the same mean gate ({means[0]:g}); that is no ranking of layers")
    if rule == "Z3" and (clamped != clamped[:, :1]).any():
        raise HeadwiseError("rule Z3 takes gates that were found one per layer; these differ inside a layer (use Z1 or Z2)")
    if rule == "Z2":
        heads = binarise(gates, count / len(gates)).kept.sum(axis=1).astype(np.float64)
        kept, tied = strongest(count, heads, means, raw)
    else:
        kept, tied = strongest(count, means, raw)
    return Pattern(kept, tied, highest(means[~kept]))
