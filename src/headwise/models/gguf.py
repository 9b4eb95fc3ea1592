"""GGUF files, llama.cpp's format of models: which file is meant, whether it can be used, and how it becomes a transformers model.

transformers reads the file; it leaves some of what a file states unread, and unknown tensors out, without a word. Here every such file is refused:
a model that loads gives the numbers of the original.
"""

from __future__ import annotations

import re
from math import isclose
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError, MissingExtraError, UnsupportedModelError
from headwise.heads.text import shorten
from headwise.models.checkpoint import some_of
from headwise.models.families import REFUSED
from headwise.models.gguf_header import Header, check_length, is_gguf, quantization_of, read_header

ENDING = ".gguf"
SOURCE = "headwise_source"  # key of the configuration that keeps where the weights came from
WEIGHTS = ("*.safetensors", "*.bin")
LAYER = re.compile(r"blk\.(\d+)\.")  # how names of a layer's tensors begin

# Architectures of GGUF files whose logits the tests compare with the original's.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
# Others -> the model type that says in `families.REFUSED` why they cannot be used.
RELATIVES = {
    "bert": "bert",
    "nomic-bert": "bert",
    "nomic-bert-moe": "bert",
    "jina-bert-v2": "bert",
    "jina-bert-v3": "bert",
    "modern-bert": "modernbert",
    "t5": "t5",
    "t5encoder": "bert",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "rwkv6": "rwkv",
    "rwkv7": "rwkv",
    "deepseek2": "deepseek_v2",
    "lfm2": "lfm2",
    "falcon": "falcon",
    "bloom": "bloom",
    "mpt": "mpt",
    "gemma3n": "gemma3n",
    "llama4": "llama4",
    "jamba": "jamba",
    "falcon-h1": "falcon_h1",
    "minicpm3": "minicpm3",
}
# Ways of cutting text that byte-level BPE has without a rule of its own in transformers' table.
PLAIN_SPLITS = ("gpt-2", "smollm")
# What a file may state -> the field of the configuration that must say the same.
STATED = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Tensors that scale the rotation of positions; transformers does not read them.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def given_file(name: str) -> Path | None:
    """The GGUF file that a model's name is; None if it is no file.

    Raises:
        HeadwiseError: The name ends in `.gguf`, and there is no such file.
    """
    path = Path(name)
    if path.is_file() and (name.lower().endswith(ENDING) or is_gguf(path)):
        return path
    if name.lower().endswith(ENDING) and not path.is_dir():
        raise HeadwiseError(f"no such GGUF file: {name!r}")
    return None


def check_chosen(chosen: str | None) -> None:
    """Raise if the name of a GGUF file leads out of the model's folder: results would name a model that was not used."""
    if chosen is not None and (Path(chosen).is_absolute() or ".." in Path(chosen).parts):
        raise HeadwiseError(
            f"the GGUF file {chosen!r} is not in the model's folder; name a file in it, or give the file itself as the model"
        )


def file_in(folder: Path, chosen: str | None) -> Path | None:
    """The GGUF file to load from a model's folder; None if the folder holds a checkpoint of transformers, and no file was chosen.

    Raises:
        HeadwiseError: The chosen file is not there, or there are several and none was chosen.
    """
    held = sorted(path.name for path in folder.glob("*" + ENDING))
    if chosen is not None:
        if not (folder / chosen).is_file():
            there = f"it holds {some_of(held)}" if held else "it holds no GGUF file"
            raise HeadwiseError(f"no file {chosen!r} in the model's folder; {there}")
        return folder / chosen
    if not held or (folder / "adapter_config.json").is_file() or any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return None
    if len(held) > 1:
        raise HeadwiseError(
            f"{str(folder)!r} holds several GGUF files: {some_of(held)}; choose one with --gguf-file (gguf_file=)"
        )
    return folder / held[0]


def require_gguf() -> None:
    """Raise unless the packages that transformers reads GGUF files with are installed; the message names the extra."""
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "gguf") from error


def checked_header(file: Path, packed: bool = False) -> Header:
    """The head of a GGUF file that can be used.

    Args:
        file: The file.
        packed: Its weights are to stay packed.

    Raises:
        HeadwiseError: It is no whole GGUF file, a part of one, or the weights cannot stay packed.
        UnsupportedModelError: Its architecture cannot be used.
        MissingExtraError: The extra `gguf` is not installed.
    """
    header = read_header(file)
    require_gguf()
    _check_architecture(header, file.name)
    if packed:
        _refuse_packed(header.architecture)
    parts = header.facts.get("split.count")
    if parts not in (None, 0, 1):
        raise HeadwiseError(f"{file.name} is one of {shorten(str(parts))} parts; join them first (llama-gguf-split --merge)")
    check_length(header, file.name)
    _check_layers(header, file.name)
    _check_reading(header, file.name)
    return header


def _check_architecture(header: Header, name: str) -> None:
    kind = header.architecture
    if kind in ("clip", "mmproj") or header.facts.get("general.type") == "mmproj":
        raise UnsupportedModelError(f"{name} is the vision part of a model (mmproj); give the file that holds the language model")
    if header.facts.get("general.type") == "adapter":
        raise UnsupportedModelError(f"{name} is an adapter in GGUF; give the adapter's folder of peft with --adapter instead")
    if kind in RELATIVES:
        raise UnsupportedModelError(f"{name} holds a model of architecture {kind!r}: {REFUSED[RELATIVES[kind]]}")
    if kind not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{name} holds a model of architecture {kind!r}, which is not read from GGUF files; these are: {', '.join(ARCHITECTURES)}. "
            "Give its checkpoint in safetensors"
        )
    if header.about("expert_count"):
        raise UnsupportedModelError(
            f"{name} holds a mixture of experts ({kind}), which is not read from GGUF; give its safetensors"
        )


def _refuse_packed(architecture: str) -> None:
    """No family of ours can stay packed in the releases of transformers that are allowed; its own list says which can."""
    import transformers
    from transformers.integrations.gguf import GGUF_ARCHS

    able = ", ".join(sorted(GGUF_ARCHS))
    raise UnsupportedModelError(
        f"the weights of a GGUF file of architecture {architecture!r} cannot stay packed: transformers {transformers.__version__} "
        f"does so for {able} only; leave --packed out, and they are unpacked when they are loaded"
    )


def _check_layers(header: Header, name: str) -> None:
    """Raise if the file names layers that it does not hold: transformers would build them all before it looks."""
    stated, held = header.about("block_count"), {found[1] for found in map(LAYER.match, header.tensors) if found}
    if not isinstance(stated, int) or stated > len(held):
        raise HeadwiseError(f"{name} is damaged: its head names {shorten(repr(stated))} layers, it holds tensors of {len(held)}")


def _check_reading(header: Header, name: str) -> None:
    """Raise for what would change the model's numbers, and transformers' reader leaves out."""
    scaling = header.about("rope.scaling.type")
    factor = header.about("rope.scaling.factor")
    tensors = [tensor for tensor in ROPE_TENSORS if tensor in header.tensors]
    if tensors or (scaling not in (None, "none") and factor != 1.0) or header.about("rope.scale_linear") not in (None, 1.0):
        raise UnsupportedModelError(
            f"{name} stretches positions ({tensors[0] if tensors else f'RoPE scaling {scaling}'}), which transformers does not read from "
            "GGUF files: its answers would be wrong; give its checkpoint in safetensors"
        )
    cut = header.facts.get("tokenizer.ggml.pre")
    if header.facts.get("tokenizer.ggml.model") == "gpt2" and cut is not None and cut not in (*PLAIN_SPLITS, *_known_splits()):
        raise UnsupportedModelError(
            f"the tokenizer of {name} cuts text by the rule {cut!r}, which transformers does not know for GGUF files: its tokens would be "
            "wrong; give its checkpoint in safetensors"
        )


def _known_splits() -> tuple[str, ...]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return tuple(GGUF_PRE_TOKENIZER_SPLITS)


def check_config(header: Header, config: Any, name: str) -> None:
    """Raise if the configuration that transformers made says anything else than the file does.

    Args:
        header: The file's head.
        config: The configuration.
        name: The file, for the message.
    """
    told = {key: (header.about(key), getattr(config, field, None)) for key, field in STATED.items()}
    told["rope.freq_base"] = (header.about("rope.freq_base"), _rope_base(config))
    if (scalar := getattr(config, "query_pre_attn_scalar", None)) is not None:  # Gemma; no file states it (27B models differ)
        told["the scale of attention"] = (config.head_dim, scalar)
    for key, (stated, made) in told.items():
        alike = isinstance(stated, int | float) and isinstance(made, int | float) and isclose(stated, made, rel_tol=1e-5)
        if stated is not None and not alike:
            meant = shorten(repr(stated))
            raise UnsupportedModelError(
                f"{name}: transformers reads {key} as {made}, where the file means {meant}: its answers would be wrong; "
                "give its checkpoint in safetensors"
            )


def _rope_base(config: Any) -> Any:
    found = getattr(config, "rope_parameters", None) or {}
    return found.get("rope_theta", found.get("full_attention", {}).get("rope_theta"))


def compared(header: Header, config: Any, name: str) -> dict[str, Any]:
    """What of the file does not fit a model of this configuration; nothing of that size is allocated.

    Args:
        header: The file's head.
        config: The configuration.
        name: The file, for the message.

    Returns:
        As transformers' loading info. unexpected_keys: tensors that transformers has no place for, and so would leave out. mismatched_keys:
        (tensor, its shape in the file, its shape in the model); transformers would fill them at random. missing_keys: none; loading tells them.

    Raises:
        HeadwiseError: No model can be built from the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        places = get_gguf_hf_weights_map(skeleton, kind(config=config.to_dict()))
    except Exception as error:  # of many kinds, for sizes and token ids that make no sense together
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise HeadwiseError(f"{name} is damaged: no model can be built from what its head names ({said})") from error
    wanted = {key: tuple(values.shape) for key, values in skeleton.state_dict().items()}
    shapes = {key: (tuple(reversed(tensor.shape)), wanted.get(places.get(key, ""))) for key, tensor in header.tensors.items()}
    wrong = [(key, found, needed) for key, (found, needed) in shapes.items() if needed is not None and found != needed]
    return {"unexpected_keys": sorted(set(header.tensors) - set(places)), "missing_keys": (), "mismatched_keys": wrong}


def source_of(header: Header, file: Path) -> dict[str, str]:
    """Where the weights came from, for results: format, file name, quantisation."""
    return {"format": "GGUF", "file": file.name, "quantization": quantization_of(header)}
