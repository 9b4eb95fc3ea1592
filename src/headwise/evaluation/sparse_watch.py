"""What sparse steps read, against what each layer would attend to at the same step if it read everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.call import Call, KeyProvider, Whole
from headwise.attention.selected import Found, Selected
from headwise.attention.sparse import quality_of, row_weights
from headwise.heads.types import Heads
from headwise.maths.select import protected
from headwise.maths.slots import marked
from headwise.models.model import Model


class Watch:
    """Step of the pipeline that must be opened in front of the sparse one: it keeps the whole keys, and looks at what was chosen of them.

    Args:
        model: That runs.
        sinks: First positions that every choice holds; they do not count for recall.
        recent: Last ones.
        heads: Heads at which the mass that is kept is told apart; None: no such number.
        rows: Compute attention rows over all keys, for mass and recall; False: count bytes only.
    """

    def __init__(self, model: Model, sinks: int, recent: int, heads: Heads | None, rows: bool) -> None:
        self._layers = frozenset(model.heads.full_layers)
        self._by_layer = {} if heads is None else model.by_layer(heads)
        self._sinks, self._recent, self._rows = sinks, recent, rows
        self._whole: dict[int, Whole] = {}
        self._read = self._full = self._steps = 0
        self._mass: list[float] = []
        self._own: list[float] = []
        self._recall: list[Found] = []
        self._compared: list[int] = []  # the layers that these are of

    def choose_keys(self, call: Call) -> KeyProvider:
        """Changes nothing."""
        if call.layer in self._layers and call.query.shape[2] == 1:
            self._whole[call.layer] = call.whole
        return call.source

    def look(self, call: Call) -> None:
        """Count what a layer reads."""
        if call.query.shape[2] > 1 or call.layer not in self._layers:
            return
        whole = self._whole.pop(call.layer)
        keys, values = whole.keys[-1], whole.values[-1]
        row = keys.shape[1] * sum(table.shape[-1] * table.element_size() for table in (keys, values))
        self._steps += call.layer == min(self._layers)
        self._full += row * whole.length
        self._read += row * (call.source.positions.shape[-1] if isinstance(call.source, Selected) else whole.length)
        if self._rows:
            self._compare(call, whole)

    def _compare(self, call: Call, whole: Whole) -> None:
        if not isinstance(call.source, Selected):
            heads = call.query.shape[1]
            self._mass += [1.0] * heads
            self._own += [1.0] * len(self._by_layer.get(call.layer, ()))
            return
        positions = call.source.positions
        weights = row_weights(call, whole)[0]
        chosen = marked(positions, whole.length)[0].repeat_interleave(len(weights) // positions.shape[1], dim=0)
        kept = (weights * chosen.to(weights.device)).sum(dim=-1).tolist()
        self._mass += kept
        self._own += [kept[head] for head in self._by_layer.get(call.layer, ())]
        self._recall.append(quality_of(call, whole, positions, *self._places(whole)))
        self._compared.append(call.layer)

    def _places(self, whole: Whole) -> tuple[Tensor, Tensor]:
        """[1, S] what is visible, and what every choice holds; one row without padding sees everything."""
        order = torch.arange(whole.length, device=whole.keys[-1].device)[None]
        return torch.ones_like(order, dtype=torch.bool), protected(order, self._sinks, self._recent)

    def shares(self) -> dict[str, Any]:
        """Mass kept over all heads and at the given ones (1 where everything was read), recall, also by layer, and its chance.

        None where there is nothing; by layer: where a layer always read everything.
        """
        recall, _, chance = np.mean(self._recall, axis=0).tolist() if self._recall else (None, None, None)
        mass, own = (float(np.mean(values)) if values else None for values in (self._mass, self._own))
        found = {"mass": mass, "mass_heads": own, "recall": recall, "recall_by_chance": chance}
        return found | {"recall_by_layer": self._by_layer_recall()}

    def _by_layer_recall(self) -> list[float | None] | None:
        if not self._recall:
            return None
        own: dict[int, list[float]] = {layer: [] for layer in sorted(self._layers)}
        for layer, found in zip(self._compared, self._recall, strict=True):
            own[layer].append(found.recall)
        return [float(np.mean(values)) if values else None for values in own.values()]

    def bytes_per_step(self, chosen_by: float) -> dict[str, Any]:
        """Keys and values that attention read, what the chooser read to choose, and what there was; None before the first step of one token.

        Args:
            chosen_by: Bytes that the chooser read, all steps together.
        """
        each = {"bytes_read": self._read, "bytes_chosen_by": chosen_by, "bytes_full": self._full}
        return {name: total / self._steps if self._steps else None for name, total in each.items()}
