"""A fingerprint of a model's weights: results of a checkpoint that was trained on, or swapped, under the same name must not mix."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES = 64  # values read per parameter


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits, from names, shapes, types and evenly spread values of all parameters; the same on every device."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
