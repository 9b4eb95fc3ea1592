"""Tiny GGUF files: the weights of a random model of transformers, and a byte-level BPE tokenizer, as llama.cpp's converter writes them."""

import json

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headwise.testing.tiny import tiny_model

TEXT = "The key of the old house lies under the stone. Where is the key? It lies under the third stone, said 12 people in 1999."
SPECIAL = ("<|end|>", "<|start|>")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256}  # the only scale of attention that transformers reads from a GGUF file
CONFIGS = {
    "llama": {},
    "qwen2": {},
    "gemma3": {**GEMMA, "num_hidden_layers": 6, "layer_types": None},  # every sixth layer sees everything
    "qwen3": {"head_dim": 128},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 50.0},
    "phi3": {},
}
TYPES = {"gemma3": "gemma3_text"}
SCALES = {"gemma2", "gemma3"}  # norms are stored with 1 added


def bpe_tokenizer():
    """A byte-level BPE of about 300 tokens with two control tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    made.chat_template = TEMPLATE
    return made


def original(architecture, **changes):
    """The random model of transformers that a file is made of."""
    size = len(bpe_tokenizer())
    model = tiny_model(TYPES.get(architecture, architecture), vocab_size=size, **{**CONFIGS[architecture], **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # those of tiny models are all alike, and would hide a mistake
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def write_gguf(path, architecture, model=None, kind="F32", skip=(), extra=(), facts=None, tokenizer=None):
    """Write a model as a GGUF file.

    Args:
        path: The file.
        architecture: As llama.cpp calls it.
        model: The model; by default `original(architecture)`.
        kind: Type of the matrices: F32, F16, Q8_0, Q4_1.
        skip: Tensors to leave out.
        extra: Names of tensors to add.
        facts: Key -> number or text, written beside the usual ones, or in their place.
        tokenizer: A byte-level BPE; by default `bpe_tokenizer()`.

    Returns:
        The model.
    """
    model, facts = original(architecture) if model is None else model, dict(facts or {})
    writer = gguf.GGUFWriter(path, architecture)
    _write_tokenizer(writer, tokenizer or bpe_tokenizer(), facts.pop("tokenizer.ggml.pre", "gpt-2"))
    stated = {**_facts(architecture, model.config), **facts}
    for key, value in stated.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    quantization = gguf.GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    for name, values in tensors(architecture, model).items():
        if name not in skip:
            _write_tensor(writer, name, values, quantization)
    for name in extra:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def tensors(architecture, model):
    """Name in the file -> values, as llama.cpp stores them."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    found = {}
    for name, parameter in model.state_dict().items():
        if name in tied:
            continue
        values = parameter.detach().float()
        if architecture == "llama" and "_proj" in name and (".q_" in name or ".k_" in name):
            heads = model.config.num_attention_heads if ".q_" in name else model.config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        if architecture in SCALES and "norm" in name:
            values = values + 1
        stem, _, end = name.rpartition(".")
        found[f"{names.get_name(stem)}.{end}"] = values.numpy()
    return found


def _write_tensor(writer, name, values, kind):
    if values.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _facts(architecture, config):
    rope = config.rope_parameters
    facts = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope.get("rope_theta") or rope["full_attention"]["rope_theta"]),
    }
    if architecture == "llama":
        facts |= {"rope.dimension_count": config.head_dim}
    if architecture in ("llama", "qwen3", "gemma2", "gemma3"):
        facts |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture in SCALES:
        facts |= {"attention.sliding_window": config.sliding_window}
    if architecture == "gemma2":
        facts |= {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    return {f"{architecture}.{key}": value for key, value in facts.items()}


def _write_tokenizer(writer, tokenizer, split):
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = tokenizer.all_special_tokens
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def ids(tokenizer):
    """Token ids of a text that exercises merges and both control tokens."""
    return torch.tensor([tokenizer.encode(f"<|start|>{TEXT}<|end|>")])
