"""Losses of single tokens from final hidden states, one tile of the logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    rows: int = 512,
    columns: int = 4096,
) -> Tensor:
    """Cross-entropy of each target under the logits of its hidden state.

    The logits are scale * (hidden @ weight.T + bias), then softcap * tanh(logits / softcap). They are multiplied in the dtype of `hidden`, as
    the model does it; all else is float32. Log-sum-exps of blocks of the vocabulary are merged, so the logits are never whole.

    Args:
        hidden: Final hidden states [N, d].
        targets: Token ids [N] int64 in [0, V).
        weight: Of the output projection [V, d].
        bias: Of the output projection [V], if it has one.
        scale: Factor of the logits (Granite, Cohere).
        softcap: Cap of the logits (Gemma); None: they are not capped.
        rows: Hidden states whose logits are held at once.
        columns: Token ids whose logits are held at once.

    Returns:
        Losses [N] float32 in nats.
    """
    count, size = len(hidden), len(weight)
    buffer = torch.empty(min(rows, count) * min(columns, size), dtype=hidden.dtype, device=hidden.device)
    losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
    for start in range(0, count, rows):
        part, wanted = hidden[start : start + rows], targets[start : start + rows]
        total = torch.full((len(part),), -torch.inf, device=hidden.device)
        own = torch.zeros(len(part), device=hidden.device)
        for first in range(0, size, columns):
            block = weight[first : first + columns]
            # One buffer for all tiles: fresh memory for each would cost as much as the exponentials.
            tile = torch.mm(part, block.T, out=buffer[: len(part) * len(block)].view(len(part), len(block))).float()
            if bias is not None:
                tile += bias[first : first + columns]
            if scale != 1.0:
                tile *= scale
            if softcap is not None:
                tile.div_(softcap).tanh_().mul_(softcap)
            place = wanted - first
            found = tile.gather(1, place.clamp(0, len(block) - 1).unsqueeze(1)).squeeze(1)
            own = torch.where((place >= 0) & (place < len(block)), found, own)
            highest = tile.amax(dim=1)
            total = torch.logaddexp(total, tile.sub_(highest.unsqueeze(1)).exp_().sum(dim=1).log_().add_(highest))
        losses[start : start + rows] = total - own
    return losses
