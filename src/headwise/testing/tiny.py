"""Tiny random models, one configuration per family: four layers, eight query heads, a vocabulary of 96."""

from __future__ import annotations

from typing import Any

import torch

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_seed
from headwise.models.model import use_the_cap

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW: dict[str, Any] = {"sliding_window": 8}

# head_dim differs from hidden / heads wherever the family allows it, because real models do that too.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "head_dim": 16},
    "mistral": {**COMMON, "head_dim": 16, **WINDOW},
    "mixtral": {**COMMON, "head_dim": 16, "num_local_experts": 4, "sliding_window": None},
    "qwen2": {**COMMON, "use_sliding_window": False},
    "qwen3": {**COMMON, "head_dim": 16},
    "qwen3_moe": {**COMMON, **MOE, "head_dim": 16},
    "qwen3_next": {
        **COMMON,
        **MOE,
        "head_dim": 16,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    },
    "gemma2": {**COMMON, **WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gemma3_text": {
        **COMMON,
        **WINDOW,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    },
    "phi3": {**COMMON, "sliding_window": None},
    "gpt_neox": {k: v for k, v in COMMON.items() if k != "num_key_value_heads"},
    "gpt2": {k: v for k, v in COMMON.items() if k not in ("num_key_value_heads", "intermediate_size", "max_position_embeddings")}
    | {"n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "olmo2": {**COMMON},
    "granite": {**COMMON, "attention_multiplier": 0.2},
    "smollm3": {**COMMON, "no_rope_layers": [1, 1, 1, 0]},
    "cohere2": {
        **COMMON,
        **WINDOW,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "olmo3": {
        **COMMON,
        **WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "glm4": {**COMMON, "head_dim": 16},
    "starcoder2": {**COMMON, "use_bias": True, "sliding_window": None},
    "gpt_oss": {**COMMON, **WINDOW, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
}
TINY_FAMILIES = tuple(CONFIGS)


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> Any:
    """A random model of a family, with weights large enough that heads differ.

    Args:
        model_type: One of `TINY_FAMILIES`.
        seed: Of the weights.
        **overrides: Settings of the family's configuration class.

    Returns:
        A transformers model in evaluation mode, float32.

    Raises:
        HeadwiseError: No tiny configuration of this type, or a seed out of range.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if model_type not in CONFIGS:
        raise HeadwiseError(f"no tiny configuration for {model_type!r}; there are {', '.join(TINY_FAMILIES)}")
    torch.manual_seed(checked_seed(seed))
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    use_the_cap(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.1)
            elif name.endswith(("bias", "sinks")):
                parameter.normal_(0.0, 0.3)
    return model
