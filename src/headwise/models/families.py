"""One declaration per model family: where its attention lives and how its projections are laid out.

Dispatch is on `config.model_type`, never on a checkpoint's name. To add a family, add a line here and a tiny configuration in
`headwise.testing.tiny`; the family tests then cover it (docs/add-a-family.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from headwise.heads.errors import UnsupportedModelError

QueryLayout = Literal["separate", "gated", "fused", "interleaved", "conv", "normed"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its heads, and what its layers do to the numbers beside attention.

    Paths are dotted names of modules or parameters; "" where a family has no such part. Fields of the configuration are named by
    attribute; "" where the family never does the thing, whatever the configuration holds.

    Attributes:
        model_type: `config.model_type` of the models it describes.
        layers: Path of the decoder layers in the model.
        attention: Path of attention in a layer.
        output: Path of the output projection in attention.
        query: How the rows of one head's query are laid out:
            separate: `q_proj`, rows of head h at h*d.
            gated: `q_proj` holds query and output gate of each head, 2*d rows per head, the query first (Qwen3-Next).
            fused: `qkv_proj`, all queries first (Phi-3).
            interleaved: `query_key_value`, 3*d rows per head, the query first (GPT-NeoX).
            conv: `c_attn`, transposed weight, all queries first (GPT-2).
            normed: `q_proj` followed by a norm over *all* heads: silencing one head must happen in the norm's weight (OLMo 2).
        mlp: Path of the MLP (or mixture of experts) in a layer.
        attention_norm: Path in a layer: norm in front of attention.
        mlp_norm: Path in a layer: norm in front of the MLP.
        attention_end_norm: Path in a layer: norm of what attention adds to the residual stream.
        mlp_end_norm: Path in a layer: norm of what the MLP adds to the residual stream.
        query_norm: Path in attention: norm of the queries.
        key_norm: Path in attention: norm of the keys.
        sinks: Path in attention: one logit per head that takes mass but is no key.
        activation: Path in the MLP, or in its experts: the activation. "" where it is written out in the code of the experts (gpt-oss).
        product: Path in the MLP: the projection that reads activation(gate) * up. "" for an MLP without a gate.
        experts: Path in the MLP: the experts of a mixture. Layers that have none there have a plain MLP.
        final_norm: Path in the model: norm behind the last layer.
        position_table: Path in the model: learned vectors added to the embedding, one per position.
        embedding_scale: Field: the embedding's output is multiplied by it before the first layer.
        residual_scale: Field: what attention and MLP add to the residual stream is multiplied by it.
        attention_cap: Field: attention logits become cap * tanh(logits / cap).
        logit_scale: Field: the output projection's result is multiplied by it.
        logit_divisor: Field: the output projection's result is divided by it.
        logit_cap: Field: then the logits become cap * tanh(logits / cap).
        note: What a user should know, shown by `headwise info` and in the docs.
    """

    model_type: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    output: str = "o_proj"
    query: QueryLayout = "separate"
    mlp: str = "mlp"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_end_norm: str = ""
    mlp_end_norm: str = ""
    query_norm: str = ""
    key_norm: str = ""
    sinks: str = ""
    activation: str = "act_fn"
    product: str = "down_proj"
    experts: str = ""
    final_norm: str = "model.norm"
    position_table: str = ""
    embedding_scale: str = ""
    residual_scale: str = ""
    attention_cap: str = ""
    logit_scale: str = ""
    logit_divisor: str = ""
    logit_cap: str = ""
    note: str = ""


# Fields that name a part of a layer.
PARTS = (
    "output",
    "mlp",
    "attention_norm",
    "mlp_norm",
    "attention_end_norm",
    "mlp_end_norm",
    "query_norm",
    "key_norm",
    "sinks",
)

# What `fault_of_numbers` looks at in the configuration of any family.
MOST_POSITIONS = 2**31 - 1  # positions are 32-bit numbers in caches
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")

# Parts that several families share.
HEAD_NORMS: dict[str, Any] = {"query_norm": "q_norm", "key_norm": "k_norm"}
FOUR_NORMS: dict[str, Any] = {
    "attention_end_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_end_norm": "post_feedforward_layernorm",
}
END_NORMS: dict[str, Any] = {  # none in front, as in OLMo 2
    "attention_norm": "",
    "attention_end_norm": "post_attention_layernorm",
    "mlp_norm": "",
    "mlp_end_norm": "post_feedforward_layernorm",
}

FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", note="also Yi, TinyLlama, SmolLM 1 and 2, DeepSeek-R1 distillations on Llama"),
        Family("mistral", note="v0.1 has a sliding window in every layer"),
        Family("mixtral", experts="experts"),
        Family("qwen2", note="also Qwen2.5; biases on query, key and value"),
        Family("qwen3", **HEAD_NORMS, note="norm on each head's query and key"),
        Family("qwen3_moe", **HEAD_NORMS, experts="experts", note="norm on each head's query and key"),
        Family(
            "qwen3_next",
            query="gated",
            **HEAD_NORMS,
            experts="experts",
            note="only full-attention layers have heads; output gate after attention",
        ),
        Family(
            "gemma2",
            **FOUR_NORMS,
            attention_cap="attn_logit_softcapping",
            logit_cap="final_logit_softcapping",
            note="capped logits; every second layer has a sliding window",
        ),
        Family(
            "gemma3_text",
            **FOUR_NORMS,
            **HEAD_NORMS,
            logit_cap="final_logit_softcapping",
            note="five of six layers have a sliding window",
        ),
        Family(
            "gemma3",
            layers="model.language_model.layers",
            final_norm="model.language_model.norm",
            **FOUR_NORMS,
            **HEAD_NORMS,
            note="text part of the multimodal model",
        ),
        Family("phi3", query="fused", activation="activation_fn"),
        Family(
            "gpt_neox",
            layers="gpt_neox.layers",
            attention="attention",
            output="dense",
            query="interleaved",
            activation="act",
            product="",
            final_norm="gpt_neox.final_layer_norm",
            note="Pythia",
        ),
        Family(
            "gpt2",
            layers="transformer.h",
            attention="attn",
            output="c_proj",
            query="conv",
            attention_norm="ln_1",
            mlp_norm="ln_2",
            activation="act",
            product="",
            final_norm="transformer.ln_f",
            position_table="transformer.wpe",
        ),
        Family("olmo2", query="normed", **END_NORMS, **HEAD_NORMS, note="norm over the queries of all heads together"),
        Family(
            "granite",
            embedding_scale="embedding_multiplier",
            residual_scale="residual_multiplier",
            logit_divisor="logits_scaling",
            note="its own attention multiplier",
        ),
        Family("smollm3", note="no position encoding in every fourth layer"),
        Family(
            "cohere2",
            mlp_norm="input_layernorm",
            logit_scale="logit_scale",
            note="three of four layers have a sliding window; no position encoding in the others",
        ),
        Family(
            "olmo3",
            query="normed",
            **END_NORMS,
            **HEAD_NORMS,
            note="three of four layers have a sliding window; norm as in `olmo2`",
        ),
        Family(
            "glm4",
            attention_end_norm="post_self_attn_layernorm",
            mlp_end_norm="post_mlp_layernorm",
            activation="activation_fn",
            note="half of each head's width has no position encoding",
        ),
        Family(
            "starcoder2",
            activation="act",
            product="",
            note="biases on all projections; a sliding window in every layer of some checkpoints",
        ),
        Family(
            "gpt_oss",
            sinks="sinks",
            experts="experts",
            activation="",
            note="a sink logit per head; every second layer has a sliding window",
        ),
    )
}

_STATE = "a state-space model without attention heads"
_MLA = "multi-head latent attention (MLA) is not supported yet"
_HYBRID = "recurrent or state-space layers beside attention are not supported yet"
_SHARED = "layers that read the keys and values of other layers are not supported yet"
_OWN = "its attention is written out in its own code, where nothing can be attached"
_ENCODER = "an encoder, not a decoder model"
_BOTH = "an encoder-decoder, not a decoder model"

REFUSED = {
    "mamba": _STATE,
    "mamba2": _STATE,
    "falcon_mamba": _STATE,
    "rwkv": "a recurrent model without attention heads",
    "xlstm": "a recurrent model without attention heads",
    "recurrent_gemma": _HYBRID,
    "jamba": _HYBRID,
    "bamba": _HYBRID,
    "falcon_h1": _HYBRID,
    "zamba": _HYBRID,
    "zamba2": _HYBRID,
    "nemotron_h": _HYBRID,
    "granitemoehybrid": _HYBRID,
    "olmo_hybrid": _HYBRID,
    "lfm2": "short convolutions beside attention are not supported yet",
    "minimax": "linear attention (Lightning) beside attention is not supported yet",
    "kimi_linear": "linear attention beside multi-head latent attention (MLA) is not supported yet",
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": "its compressed sparse attention is not supported yet",
    "kimi_k25": _MLA,
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "longcat_flash": _MLA,
    "minicpm3": _MLA,
    "gemma3n": _SHARED,
    "gemma3n_text": _SHARED,
    "gemma4": _SHARED,
    "gemma4_text": _SHARED,
    "llama4": "attention in chunks is not supported yet",
    "llama4_text": "attention in chunks is not supported yet",
    "diffllama": "differential attention (the difference of two heads) is not supported yet",
    "bloom": _OWN,
    "falcon": _OWN,
    "mpt": _OWN,
    "gpt_neo": _OWN,
    "t5": _BOTH,
    "bart": _BOTH,
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "modernbert": _ENCODER,
}


def family_of(model_type: str) -> Family:
    """The declaration of a model type.

    Raises:
        UnsupportedModelError: There is none; the message says why.
    """
    if model_type in REFUSED:
        raise UnsupportedModelError(f"model type {model_type!r} cannot be used: {REFUSED[model_type]}")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not known; known: {', '.join(sorted(FAMILIES))}. To add one see docs/add-a-family.md"
        )
    return FAMILIES[model_type]


def fault_of_numbers(config: Any) -> str | None:
    """A number of a configuration with which no model can work, though transformers takes it; None if there is none.

    Args:
        config: The configuration of the language model.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and not (isinstance(positions, int) and 0 < positions <= MOST_POSITIONS):
        return f"max_position_embeddings is {positions!r}; a number of tokens from 1 to {MOST_POSITIONS} is expected"
    small = {name: getattr(config, name) for name in EPSILONS if getattr(config, name, None) is not None}
    rotations = _rotations(getattr(config, "rope_parameters", None))
    for name, value in [*small.items(), *(("rope_theta", theta) for theta in rotations)]:
        if not isinstance(value, int | float) or not 0 < value < inf:
            return f"{name} is {value!r}; a number above 0 is expected"
    return None


def _rotations(parameters: Any) -> list[Any]:
    """The bases of all rotations: one, or one per kind of layer."""
    if not isinstance(parameters, dict):
        return []
    own = [parameters["rope_theta"]] if parameters.get("rope_theta") is not None else []
    return own + [theta for value in parameters.values() for theta in _rotations(value)]
