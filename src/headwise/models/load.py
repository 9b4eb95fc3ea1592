"""Loading a model and its tokenizer from a hub id or a folder."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError
from headwise.models.families import family_of
from headwise.models.model import Model
from headwise.models.registry import bundled_models

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(name: str, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> Model:
    """Load a causal language model in evaluation mode.

    name: name of a bundled model, folder or hub id.
    device: "auto" (CUDA if there is one), "cpu", "cuda", ... dtype: "auto" (as saved; float32 on a CPU),
    "float32", "bfloat16", "float16". Raises `HeadwiseError` for a model that does not exist or cannot be used.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    bundled = bundled_models().get(name)
    label, name = (name, str(bundled)) if bundled else ("", name)
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or name.count("/") > 1 or not name.strip()):
        raise HeadwiseError(f"no such model folder: {name!r}; give a folder with config.json or a hub id like 'owner/name'")
    if not folder.is_dir() and "/" not in name and (near := get_close_matches(name, bundled_models())):
        # A typing error, not a hub id: do not wait for the network.
        raise HeadwiseError(f"unknown model {name!r}; did you mean {', '.join(near)}? Or give a folder or a hub id like 'owner/name'")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise HeadwiseError(f"cannot load model {name!r}: {_first_line(error)}; give a folder or a hub id") from error
    family_of(config.model_type)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=kind)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise HeadwiseError(f"cannot load model {name!r}: {_first_line(error)}") from error
    model = model.to(place).eval()
    return Model(model, tokenizer, label)


def resolve_device(device: str) -> str:
    """The device to use; an absent one is refused."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise HeadwiseError(f"device {device!r} asked for, but this torch sees no CUDA device; use --device cpu")
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise HeadwiseError(f"unknown device {device!r}; use auto, cpu or cuda")
    return device


def resolve_dtype(dtype: str, device: str) -> Any:
    """The dtype to load in."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    if dtype not in DTYPES:
        raise HeadwiseError(f"unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
