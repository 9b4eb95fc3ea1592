"""From the last hidden states to logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError


@dataclass(frozen=True)
class Readout:
    """The output projection, and what a family does to its result: logits = capped(scale * projection(hidden)).

    Attributes:
        projection: The linear layer from hidden states to the vocabulary.
        scale: Granite divides and Cohere multiplies the logits.
        cap: Gemma 2 caps them: cap * tanh(logits / cap); None where they are not capped.
    """

    projection: nn.Module
    scale: float
    cap: float | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of hidden states [..., width] behind the final norm, in their dtype."""
        logits: Tensor = self.projection(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def of_tokens(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of one token per hidden state, without those of the rest of the vocabulary and before the cap.

        Args:
            hidden: [..., width] behind the final norm.
            tokens: [...] token ids; sizes of 1 stretch as they do in arithmetic.

        Returns:
            [...] float32.

        Raises:
            HeadwiseError: The projection's weight is packed (quantized).
        """
        weight: Any = self.projection.weight
        if not weight.is_floating_point() or hasattr(weight, "__tensor_flatten__"):
            raise HeadwiseError(f"the output projection of the vocabulary is packed ({weight.dtype}); load the model unpacked")
        tokens = tokens.to(weight.device)
        logits: Tensor = (hidden.to(weight.device).float() * weight[tokens].float()).sum(dim=-1)
        bias: Any = getattr(self.projection, "bias", None)
        if bias is not None:
            logits = logits + bias[tokens].float()
        return logits * self.scale
