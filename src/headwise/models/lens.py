"""The logit lens of single heads: what one head alone would say, if the final norm and the vocabulary read its output directly.

nostalgebraist (2020); as features of a head in Kahardipraja et al. 2025 (arXiv:2505.15807, sec. 6): `W_U[t] . LN(W_O^h z^h)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model


class HeadLens:
    """Reads chosen heads of a model one by one. It holds a float32 copy of their columns of the output projections.

    Attributes:
        heads: Layer -> its n chosen heads.
    """

    def __init__(self, model: Model, heads: Mapping[int, list[int]]) -> None:
        """Take the heads' columns.

        Args:
            model: The model.
            heads: Layer -> heads, in layers with softmax attention.

        Raises:
            HeadwiseError: Weights of an output projection are packed, or not in memory.
        """
        self._model, self.heads = model, dict(heads)
        self._readout, self._norm = model.readout, model.final_norm
        self._columns = {layer: _columns(model, layer, chosen) for layer, chosen in self.heads.items()}

    def vectors(self, layer: int, outputs: Tensor) -> Tensor:
        """What each head writes, behind the final norm (the bias of the output projection belongs to no head and is left out).

        Args:
            layer: Their layer.
            outputs: [..., n, d], what the output projection takes from each of the layer's chosen heads.

        Returns:
            [..., n, width] float32.
        """
        written = torch.einsum("...nd,ndw->...nw", outputs.float(), self._columns[layer])
        gain: Any = next(self._norm.parameters())
        return self._norm(written.to(gain.device, gain.dtype)).float()  # type: ignore[no-any-return]

    def scores(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Logit of one token per row.

        Args:
            vectors: [..., n, width] of `vectors`.
            tokens: [...] token ids, one for the n heads of a row.

        Returns:
            [..., n] float32.
        """
        return self._readout.of_tokens(vectors, tokens.unsqueeze(-1))


def _columns(model: Model, layer: int, heads: list[int]) -> Tensor:
    """[n, d, width] float32: the part of the output projection that reads each head."""
    weight: Any = model.part("output", layer).weight
    if not weight.is_floating_point() or weight.element_size() < 2 or hasattr(weight, "__tensor_flatten__"):
        raise HeadwiseError(
            f"layer {layer}: the output projection is packed ({weight.dtype}); load the model without quantization"
        )
    if weight.is_meta:
        raise HeadwiseError(
            f"layer {layer}: the output projection is not in memory (offloaded); load the model without offloading"
        )
    rows = weight.detach() if model.family.query == "conv" else weight.detach().T  # GPT-2 keeps its weights transposed
    found: Tensor = rows.reshape(model.heads.shape[1], model.heads.head_dim, -1)[heads].float()
    return found
