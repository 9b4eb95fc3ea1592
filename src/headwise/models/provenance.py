"""Where a result comes from."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from headwise.models.model import Model

PACKAGES = ("headwise", "torch", "transformers", "numpy")


def describe_model(model: Model) -> dict[str, Any]:
    """Model, shape, tokenizer, dtype, device and library versions. No time stamps: the same run gives the same bytes."""
    config = model.hf.config
    return {
        "model": model.name,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "layers": model.heads.shape[0],
        "heads": model.heads.shape[1],
        "kv_heads": model.heads.kv_heads,
        "head_dim": model.heads.head_dim,
        "sliding_layers": sorted(i for i, window in model.heads.windows.items() if window is not None),
        "layers_without_heads": sorted(set(range(model.heads.shape[0])) - set(model.modules)),
        "tokenizer": type(model.tokenizer).__name__,
        "vocabulary": len(model.tokenizer.get_vocab()),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "device": model.hf.device.type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
