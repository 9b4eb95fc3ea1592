"""Rotary positions (Su et al. 2021), and their stretching to longer texts without training (YaRN, Peng et al. 2023, arXiv:2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FAST, SLOW = (
    32.0,
    1.0,
)  # turns over the trained length from which a frequency is kept, and up to which it is stretched in full (YaRN, sec. 3.2)


def frequencies(width: int, theta: float) -> Tensor:
    """[width / 2] float32: radians per position of each pair of channels.

    Args:
        width: Channels of a head, even.
        theta: Base.
    """
    return theta ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)


def yarn(plain: Tensor, theta: float, length: int, factor: float) -> tuple[Tensor, float]:
    """Frequencies for texts that are `factor` times as long as those of training ("NTK by parts", sec. 3.2), and the scale of sec. 3.4.

    Channels that turn often over the trained length stay as they are; those that turn less than once are slowed down by `factor`; in between the
    share goes linearly with the index of the channel.

    Args:
        plain: [n] as `frequencies` gives them.
        theta: Their base.
        length: Tokens of the texts of training.
        factor: From 1 on; 1 changes nothing.

    Returns:
        (frequencies [n], what queries and keys are both multiplied by).
    """
    if factor <= 1:
        return plain, 1.0
    width = 2 * len(plain)

    def channel(turns: float) -> float:
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(0, math.floor(channel(FAST))), min(width - 1, math.ceil(channel(SLOW)))
    index = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
    stretched = ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - stretched) + plain / factor * stretched, 0.1 * math.log(factor) + 1


def rotated(states: Tensor, positions: Tensor, turning: Tensor, scale: float = 1.0) -> Tensor:
    """Turn each pair (i, i + d / 2) of channels by position x frequency.

    Args:
        states: [..., T, d].
        positions: [T] or [B, 1, T].
        turning: [d / 2] radians per position.
        scale: Factor of the result.

    Returns:
        [..., T, d] in the dtype of the states.
    """
    angle = positions[..., None].to(turning.device).float() * turning
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    one, two = states.float().chunk(2, dim=-1)
    return torch.cat([one * cosine - two * sine, two * cosine + one * sine], dim=-1).to(states.dtype)
