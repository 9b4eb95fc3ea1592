"""Where a result comes from, and the stop tokens of a loaded model."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from headwise.prompts.encoder import newline_ids

PACKAGES = ("headwise", "torch", "transformers", "numpy")


def describe_model(loaded: Any) -> dict[str, Any]:
    """Model, shape, tokenizer, dtype, device and library versions. No time stamps: the same run gives the same bytes."""
    layout, config = loaded.layout, loaded.model.config
    return {
        "model": layout.name,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "layers": layout.shape[0],
        "heads": layout.shape[1],
        "kv_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "sliding_layers": sorted(i for i, window in layout.windows.items() if window is not None),
        "layers_without_heads": sorted(set(range(layout.shape[0])) - set(layout.modules)),
        "tokenizer": type(loaded.tokenizer).__name__,
        "vocabulary": len(loaded.tokenizer.get_vocab()),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def stop_ids(loaded: Any) -> frozenset[int]:
    """Tokens that end an answer: everything with a line break, and the model's end-of-text tokens."""
    ends = {loaded.tokenizer.eos_token_id}
    generation = getattr(loaded.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, list | tuple) else {configured}
    return newline_ids(loaded.tokenizer) | {end for end in ends if end is not None}
