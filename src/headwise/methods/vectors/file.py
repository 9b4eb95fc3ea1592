"""Function vectors on disk: one small safetensors file, sealed by a digest, that only the model it was made with reads back."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from headwise.attention.vectors import HeadVectors
from headwise.heads.errors import HeadwiseError
from headwise.heads.files import write_atomically
from headwise.heads.plain import plain
from headwise.heads.text import reason
from headwise.heads.types import HeadSet
from headwise.methods.vectors.extract import FunctionVectors
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model

SCHEMA, KEY, TENSOR = 1, "headwise_vectors", "vectors"
MOST_BYTES = 2**28  # no model has so many heads


def save_vectors(found: FunctionVectors, model: Model, path: Path, overwrite: bool = False) -> None:
    """Write vectors, whole or not at all.

    Args:
        found: The vectors.
        model: The model that they belong to.
        path: The file.
        overwrite: Replace an existing file.

    Raises:
        HeadwiseError: The file exists or cannot be written, or the heads are none of this model's.
    """
    if path.exists() and not overwrite:
        raise HeadwiseError(f"{path} exists; give another name or --overwrite (results are never merged)")
    model.check(found.vectors.heads)
    about = {
        "schema": SCHEMA,
        "headwise": importlib.metadata.version("headwise"),
        "belongs": _belongs(model),
        "heads": [str(head) for head in found.vectors.heads],
        "mode": found.mode,
        "scale": float(found.scale),
        "shape": list(found.vectors.values.shape),
        "norms": [round(float(norm), 6) for norm in found.vectors.norms],
        "provenance": plain(dict(found.provenance)),
    }
    about["seal"] = _seal(about, found.vectors.values)
    data = safetensors.torch.save({TENSOR: found.vectors.values.contiguous()}, {KEY: json.dumps(about, allow_nan=False)})
    write_atomically(path, data)


def load_vectors(path: Path, model: Model) -> FunctionVectors:
    """Read vectors back.

    Args:
        path: A file of `save_vectors`.
        model: Must have the weights (and, if both are known, the tokenizer) of the model that they were saved for.

    Raises:
        HeadwiseError: A missing, broken or changed file, or one of another model.
    """
    about, values = _read(path)
    if about.get("seal") != _seal({name: value for name, value in about.items() if name != "seal"}, values):
        raise HeadwiseError(f"{path} was changed after it was written; extract the vectors again")
    saved, own = about["belongs"], _belongs(model)
    for name in own:
        if saved.get(name) != own[name] and not (name == "tokenizer" and None in (saved.get(name), own[name])):
            raise HeadwiseError(
                f"{path} holds vectors of another model: {name} {saved.get(name)!r}, but this one has {own[name]!r}"
            )
    try:
        provenance = about["provenance"]
        heads = HeadSet.of(about["heads"], model.heads.shape, str(provenance.get("chosen_by", "")), model.name)
        return FunctionVectors(HeadVectors(model.check(heads), values), about["mode"], float(about["scale"]), provenance)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadwiseError(f"{path} is a broken file of vectors ({reason(error)}); extract them again") from error


def _read(path: Path) -> tuple[dict[str, Any], torch.Tensor]:
    if not path.is_file():
        raise HeadwiseError(f"no such file of vectors: {path}")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES // 2**20} MiB")
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            values = file.get_tensor(TENSOR) if TENSOR in file.keys() else None  # noqa: SIM118  # not a dict
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise HeadwiseError(f"{path} cannot be read as a file of vectors: {error}") from error
    if (
        not isinstance(about, dict)
        or about.get("schema") != SCHEMA
        or not isinstance(about.get("belongs"), dict)
        or values is None
    ):
        raise HeadwiseError(f"{path} is no file of vectors that this headwise reads; extract them again")
    return about, values


def _belongs(model: Model) -> dict[str, Any]:
    """What a model must share with the one whose heads gave the vectors."""
    return {
        "layers": model.heads.shape[0],
        "query heads": model.heads.shape[1],
        "head width": model.heads.head_dim,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "weights": weights_digest(model.hf),
        "tokenizer": None if model.tokenizer is None else tokenizer_digest(model.tokenizer),
    }


def _seal(about: dict[str, Any], values: torch.Tensor) -> str:
    """Digest of everything in the file."""
    told = json.dumps(about, sort_keys=True).encode()
    return hashlib.sha256(told + b"\0" + values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
