"""Export: an ablated model as a plain checkpoint, which any engine serves without headwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from headwise.heads import HeadSet, HeadwiseError
from headwise.heads.headfile import write_json
from headwise.heads.types import Heads
from headwise.models.model import Model
from headwise.models.provenance import describe_model
from headwise.models.weights import silence_in_weights

NOTE = "headwise_ablation.json"


def export_ablated(model: Model, heads: Heads, mode: str, folder: Path) -> None:
    """Write weights, tokenizer and `headwise_ablation.json` to `folder`; the loaded model is the same afterwards, bit for bit.

    The heads are silenced in the loaded model's own weights, which are put back at the end: no second copy of the model is held.
    mode: `zero` or `uniform`; the scope is `all`. The folder appears under its name only when it is complete.
    Raises `HeadwiseError` for mode `mean`, heads of another model, a folder that holds something, or a full disk.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HeadwiseError(f"{folder} exists and is not an empty folder; give a new one")
    heads = model.check(heads)
    if not len(heads):
        raise HeadwiseError("no head to silence; choose at least one")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with _silenced(model, heads, mode):
            temporary.mkdir(parents=True)
            model.hf.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        note = {"mode": mode, "scope": "all", "heads": [str(head) for head in heads], "chosen_by": heads.chosen_by}
        write_json(note | {"source": describe_model(model)}, temporary / NOTE)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise HeadwiseError(f"could not write {folder}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _silenced(model: Model, heads: HeadSet, mode: str) -> Iterator[None]:
    """The model with silenced weights inside the block."""
    modules = [model.modules[layer] for layer in sorted({head.layer for head in heads} & set(model.modules))]
    kept = [(parameter, parameter.detach().clone()) for module in modules for parameter in module.parameters()]
    try:
        silence_in_weights(model.hf, heads, mode)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)
