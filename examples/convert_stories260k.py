"""Convert the llama2.c checkpoint stories260K to a transformers checkpoint, so that headwise can look at it.

    python examples/convert_stories260k.py FOLDER_WITH_BIN_AND_TOKENIZER OUT

A trained model *without* copying heads: a detector must not find any in it. Shape and layout: see the folder's SOURCE.md.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import torch

FILES = ("stories260K.bin", "tok512.bin")
HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def read_checkpoint(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Header fields and float32 arrays in the order of the file."""
    raw = path.read_bytes()
    h = dict(zip(HEADER, struct.unpack("<7i", raw[:28]), strict=True))
    d, f, layers, kv = h["dim"], h["hidden_dim"], h["n_layers"], h["dim"] * h["n_kv_heads"] // h["n_heads"]
    shapes = {
        "embedding": (h["vocab_size"], d), "attention_norm": (layers, d), "wq": (layers, d, d), "wk": (layers, kv, d),
        "wv": (layers, kv, d), "wo": (layers, d, d), "ffn_norm": (layers, d), "w1": (layers, f, d), "w2": (layers, d, f),
        "w3": (layers, f, d), "final_norm": (d,),
    }  # fmt: skip
    values, offset, arrays = np.frombuffer(raw[28:], dtype="<f4"), 0, {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = values[offset : offset + size].reshape(shape)
        offset += size
    return h, arrays


def to_half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from interleaved RoPE pairs (2i, 2i+1) to Hugging Face's halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


def build_model(h: dict[str, int], a: dict[str, np.ndarray]) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=h["vocab_size"], hidden_size=h["dim"], intermediate_size=h["hidden_dim"], num_hidden_layers=h["n_layers"],
        num_attention_heads=h["n_heads"], num_key_value_heads=h["n_kv_heads"], max_position_embeddings=h["seq_len"],
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    state = {"model.embed_tokens.weight": a["embedding"], "model.norm.weight": a["final_norm"], "lm_head.weight": a["embedding"]}
    names = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
             "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    for i in range(h["n_layers"]):
        state |= {f"model.layers.{i}.{theirs}.weight": a[ours][i] for ours, theirs in names.items()}
        state[f"model.layers.{i}.self_attn.q_proj.weight"] = to_half_rotation(a["wq"][i], h["n_heads"])
        state[f"model.layers.{i}.self_attn.k_proj.weight"] = to_half_rotation(a["wk"][i], h["n_kv_heads"])
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return model.eval()


def read_tokenizer(path: Path) -> object:
    """A SentencePiece-style BPE tokenizer (leading space, byte fallback) from llama2.c's tok512.bin."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    raw, pieces, offset = path.read_bytes(), [], 4
    while offset < len(raw):
        score, length = struct.unpack("<fi", raw[offset : offset + 8])
        pieces.append((raw[offset + 8 : offset + 8 + length].decode("utf-8", "replace"), score))
        offset += 8 + length
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(p.replace(" ", "\u2581") for p, _ in pieces[259:])]
    vocabulary = {name: i for i, name in enumerate(names)}
    # SentencePiece merges the pair whose result has the best score; all splits of a piece into two known pieces are merges.
    ranked = sorted(range(259, len(pieces)), key=lambda i: -pieces[i][1])
    merges = [
        (n[:k], n[k:])
        for n in (names[i] for i in ranked)
        for k in range(1, len(n))
        if n[:k] in vocabulary and n[k:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def convert(source: Path, target: Path) -> None:
    model = build_model(*read_checkpoint(source / FILES[0]))
    model.save_pretrained(target)
    read_tokenizer(source / FILES[1]).save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    missing = [name for name in FILES if not (Path(sys.argv[1]) / name).is_file()]
    if missing:
        hint = "give the folder of the checkpoint, such as tests/data/stories260K"
        sys.exit(f"{sys.argv[1]} does not hold {' and '.join(missing)}; {hint}")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
