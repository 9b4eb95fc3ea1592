"""A fingerprint of a model: results of a checkpoint that was trained on, or swapped, under the same name must not mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError

SAMPLES = 64  # values read per parameter
# Text that tokenizers of equal vocabularies, but other rules, cut in other places.
PROBE = "The keys, 12345 of them: Ärger, naïve, 你好世界, שלום!  Two  spaces\n\n\tand CamelCase_words; don't we'll."


def model_digest(model: nn.Module, tokenizer: Any) -> str:
    """16 hexadecimal digits of weights and tokenizer (None: none)."""
    parts = (weights_digest(model), "" if tokenizer is None else tokenizer_digest(tokenizer))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits, from names, shapes, types, evenly spread values and sums of all parameters; the same on every device.

    Raises:
        HeadwiseError: A parameter has no values (it is on torch's `meta` device and no library keeps its values).
    """
    return tensors_digest(_parameters(model))


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hexadecimal digits of named tensors, as in `weights_digest`."""
    digest = hashlib.sha256()
    for name, tensor in _plain(tensors):
        values = tensor.detach().flatten()
        some = values[:: max(1, len(values) // SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sum(values)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a class that wraps others (torchao's packed weights) are taken apart."""
    for name, tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            parts: Any = tensor
            yield from _plain((f"{name}.{part}", getattr(parts, part)) for part in parts.__tensor_flatten__()[0])
        else:
            yield name, tensor


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hexadecimal digits, from vocabulary, special tokens, chat template, and how a text of many scripts is cut."""
    facts = [
        sorted(tokenizer.get_vocab().items()),
        [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")],
        getattr(tokenizer, "chat_template", None),
        list(tokenizer.encode(PROBE)),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _sum(values: Tensor) -> str:
    """A sum of all bits, read as whole numbers of 8 bytes, which no order of adding changes; then the bytes that remain.

    The samples alone would miss a single silenced head.
    """
    flat = values.contiguous().view(torch.uint8)
    whole = len(flat) // 8 * 8
    eights = flat[:whole].clone() if flat.storage_offset() % 8 else flat[:whole]
    return f"{int(eights.view(torch.int64).sum())} {bytes(flat[whole:].cpu().numpy()).hex()}"


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and saved buffers with their values, also those that accelerate keeps elsewhere between passes."""
    for name, parameter in (*model.named_parameters(), *_saved_buffers(model)):
        if parameter.is_meta:
            owner, _, own = name.rpartition(".")
            parameter = _offloaded(model.get_submodule(owner), own, name)
        yield name, parameter


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to a checkpoint, where GPTQ and AWQ keep their weights."""
    # Not from `state_dict()`: bitsandbytes lays out its weights anew for it, and they are other weights afterwards.
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".lstrip("."), buffer


def _offloaded(module: Any, name: str, full_name: str) -> Tensor:
    hook = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        values = getattr(one, "weights_map", None)
        if values is not None and name in values:
            found: Tensor = values[name]
            return found
    raise HeadwiseError(f"{full_name} has no values (it is on the meta device); load the weights first")
