"""Fingerprints of weights and tokenizers: results of a checkpoint that was trained on, or swapped, under the same name must not mix."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from headwise.heads.errors import HeadwiseError

SAMPLES = 64  # values read per parameter


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits, from names, shapes, types and evenly spread values of all parameters; the same on every device."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise HeadwiseError("the model's weights are offloaded and cannot be read for a fingerprint; load it without offload")
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hexadecimal digits, from the vocabulary, its special tokens and how texts are cut; padding and truncation do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        facts: Any = {name: part for name, part in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")}
    else:
        facts = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
