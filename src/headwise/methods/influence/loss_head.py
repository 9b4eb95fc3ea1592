"""Losses of tokens from a model's final hidden states, without its logits ever being whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headwise.attention.plan import device_of
from headwise.heads.errors import UnsupportedModelError
from headwise.methods.influence.formula import token_losses
from headwise.models.model import as_model

CHECKED = 8  # token ids of the self-check
TILES = {"cpu": (512, 4096)}  # rows and columns of the logits held at once: 8 MB, which stays in a CPU's cache
TILE = (4096, 16384)  # on other devices


class LossHead:
    """The output projection of a model, and what the model does to its logits (Granite and Cohere scale, Gemma caps them)."""

    def __init__(self, model: Any) -> None:
        """Raises `UnsupportedModelError` if losses made here are not those of the model's own logits."""
        self._readout = as_model(model).readout
        self._tile = TILES.get(device_of(model).type, TILE)
        self._check(model)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        projection: Any = self._readout.projection
        return int(projection.weight.shape[0])

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Loss [N] float32 in nats of targets [N] after final hidden states [N, d]. See `token_losses`."""
        projection: Any = self._readout.projection
        weight, bias = projection.weight, getattr(projection, "bias", None)
        rows, columns = self._tile
        where = weight.device
        return token_losses(
            hidden.to(where),
            targets.to(where),
            weight,
            bias,
            scale=self._readout.scale,
            softcap=self._readout.cap,
            rows=rows,
            columns=columns,
        )

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        """A family that treats its logits in a way that is not known here would give wrong losses without a word."""
        ids = torch.arange(CHECKED, device=device_of(model)) % self.vocabulary
        logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0, :-1].float()
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        hidden = model.base_model(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0, :-1]
        tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
        got = self(hidden, ids[1:]).to(expected.device)
        if not torch.allclose(got, expected, atol=tolerance, rtol=tolerance, equal_nan=True):
            raise UnsupportedModelError(
                f"{type(model).__name__} changes its logits in a way that is not known here, so its losses cannot be computed in chunks"
            )
