"""In which order whole layers may stream, measured: what rule Z5 of ZigzagAttention (Liu et al. 2025, arXiv:2508.12407) chooses layers by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.caches.gated import streaming_loss
from headwise.caches.groups import Window
from headwise.heads import HeadScores, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.maths.gates import greedy_layers, kv_gates
from headwise.methods.duo.prompts import LabelledText
from headwise.models.model import Model, device_of


def with_layer_order(
    model: Model, gates: HeadScores, texts: Sequence[LabelledText], window: Window, report: Report = silent
) -> HeadScores:
    """The same gates with the order of rule Z5 in their tables (`layer_order`), which serves every `keep`.

    From all layers retrieving on, that layer comes next whose change to streaming raises the distillation loss least; the last
    one keeps longest. L layers with full attention cost (L - 1)(L + 2) / 2 measurements, two passes over every text each.

    Args:
        model: Whose gates these are.
        gates: Of its KV heads, such as `gate_scores` gives.
        texts: On which the loss is measured.
        window: What a streaming layer sees.
        report: `report(done, total, remark)`; progress in measurements.

    Returns:
        Gates whose table `layer_order` [layer] holds each layer's place in the order, from 0; NaN for layers without full
        attention.

    Raises:
        HeadwiseError: Gates of another model, gates that are not finite, or a loss that is not.
    """
    model, full = model, model.heads.full_layers
    table = kv_gates(gates, *model.heads.shape, model.heads.kv_heads, model.name)[full]
    rows = [(torch.tensor([text.ids], device=device_of(model.hf)), text.places) for text in texts]
    if not table.size or not np.isfinite(table).all():
        raise HeadwiseError("an order of layers needs a finite gate for every KV head of the layers with full attention")
    measure, known = streaming_loss(model.hf, rows, window), dict[bytes, float]()

    def loss(kept: NDArray[np.bool_]) -> float:
        if kept.tobytes() not in known:  # one search per number of kept layers, all along the same path
            known[kept.tobytes()] = measure(kept)
            report(len(known), (len(full) - 1) * (len(full) + 2) // 2, "layers that may stream")
        return known[kept.tobytes()]

    counts = range(len(full), 0, -1)
    kept = [greedy_layers(table.clip(0, 1).mean(axis=1), count, loss).kept for count in counts]
    order = [full[int((a & ~b).argmax())] for a, b in zip(kept, [*kept[1:], np.zeros_like(kept[0])], strict=True)]
    places = np.full(model.heads.shape[0], np.nan)
    places[order] = np.arange(len(order))
    return replace(gates, tables={**gates.tables, "layer_order": places})
