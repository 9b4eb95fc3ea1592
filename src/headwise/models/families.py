"""One declaration per model family: where its attention lives and how its projections are laid out.

Dispatch is on `config.model_type`, never on a checkpoint's name. To add a family, add a line here and a tiny configuration in
`headwise.testing.tiny`; the family tests then cover it (docs/add-a-family.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwise.heads.errors import UnsupportedModelError

QueryLayout = Literal["separate", "gated", "fused", "interleaved", "conv", "normed"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its heads.

    layers, attention, output: dotted paths: decoder layers in the model, attention in a layer, output projection in attention.
    query: how the rows of one head's query are laid out:
        separate     q_proj, rows of head h at h*d
        gated        q_proj holds query and output gate of each head, 2*d rows per head, the query first (Qwen3-Next)
        fused        qkv_proj, all queries first (Phi-3)
        interleaved  query_key_value, 3*d rows per head, the query first (GPT-NeoX)
        conv         c_attn, transposed weight, all queries first (GPT-2)
        normed       q_proj followed by a norm over *all* heads: silencing one head must happen in the norm's weight (OLMo 2)
    note: what a user should know, shown by `headwise info` and in the docs.
    """

    model_type: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    output: str = "o_proj"
    query: QueryLayout = "separate"
    note: str = ""


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", note="also Yi, TinyLlama, SmolLM 1 and 2, DeepSeek-R1 distillations on Llama"),
        Family("mistral", note="v0.1 has a sliding window in every layer"),
        Family("mixtral"),
        Family("qwen2", note="also Qwen2.5; biases on query, key and value"),
        Family("qwen3", note="norm on each head's query and key"),
        Family("qwen3_moe", note="norm on each head's query and key"),
        Family("qwen3_next", query="gated", note="only full-attention layers have heads; output gate after attention"),
        Family("gemma2", note="capped logits; every second layer has a sliding window"),
        Family("gemma3_text", note="five of six layers have a sliding window"),
        Family("gemma3", layers="model.language_model.layers", note="text part of the multimodal model"),
        Family("phi3", query="fused"),
        Family("gpt_neox", layers="gpt_neox.layers", attention="attention", output="dense", query="interleaved", note="Pythia"),
        Family("gpt2", layers="transformer.h", attention="attn", output="c_proj", query="conv"),
        Family("olmo2", query="normed", note="norm over the queries of all heads together"),
        Family("granite", note="its own attention multiplier"),
        Family("smollm3", note="no position encoding in every fourth layer"),
        Family("cohere2", note="three of four layers have a sliding window; no position encoding in the others"),
        Family("gpt_oss", note="a sink logit per head; every second layer has a sliding window"),
    )
}

REFUSED = {
    "mamba": "a state-space model without attention heads",
    "mamba2": "a state-space model without attention heads",
    "falcon_mamba": "a state-space model without attention heads",
    "rwkv": "a recurrent model without attention heads",
    "deepseek_v2": "multi-head latent attention (MLA) is not supported yet",
    "deepseek_v3": "multi-head latent attention (MLA) is not supported yet",
    "deepseek_v32": "multi-head latent attention (MLA) is not supported yet",
    "t5": "an encoder-decoder, not a decoder model",
    "bart": "an encoder-decoder, not a decoder model",
    "bert": "an encoder, not a decoder model",
}


def family_of(model_type: str) -> Family:
    """The declaration of a model type; `UnsupportedModelError` says why there is none."""
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model type {model_type!r} cannot be used: {REFUSED[model_type]}")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}. To add one see docs/add-a-family.md"
        )
    return FAMILIES[model_type]
