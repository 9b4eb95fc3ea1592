"""Where a result comes from."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from headwise.models.model import Model

PACKAGES = ("headwise", "torch", "transformers", "numpy")


def describe_model(model: Model) -> dict[str, Any]:
    """Where a result comes from. No time stamps: the same run gives the same bytes.

    Returns:
        Model, shape, tokenizer, dtype, device and library versions. The model is called by its name, never by the path of its folder, which is
        nobody else's business.
    """
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
        "tokenizer": type(model.tokenizer).__name__ if model.tokenizer is not None else None,
        "vocabulary": len(model.tokenizer.get_vocab()) if model.tokenizer is not None else None,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "device": device_type(model.hf),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def device_type(hf: Any) -> str:
    """Where a model computes: `cpu`, `cuda`, ... Weights that accelerate moves in for each pass are on `meta` between passes."""
    if hf.device.type != "meta":
        return str(hf.device.type)
    hooks = (getattr(module, "_hf_hook", None) for module in hf.modules())
    devices = (getattr(one, "execution_device", None) for hook in hooks for one in (hook, *getattr(hook, "hooks", ())))
    found = next((device for device in devices if device is not None), "meta")
    return "cuda" if isinstance(found, int) else str(found).split(":")[0]
