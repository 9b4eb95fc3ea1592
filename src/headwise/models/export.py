"""Export: an ablated model as a plain checkpoint, which any engine serves without headwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from headwise.heads import HeadwiseError
from headwise.heads.headfile import write_json
from headwise.heads.types import Heads
from headwise.models.adapters import adapted_parts, merged
from headwise.models.model import Model, describe_model
from headwise.models.weights import check_unpacked, silence_in_weights

NOTE = "headwise_ablation.json"
SPARE = 32 << 20  # bytes beside the weights: tokenizer, configuration


def export_ablated(model: Model, heads: Heads, mode: str, folder: Path | str) -> None:
    """Write weights, tokenizer and `headwise_ablation.json` to `folder`; the loaded model is the same afterwards, bit for bit.

    The heads are silenced in the loaded model's own weights, which are put back at the end: no second copy of the model is held. An adapter
    (of a `PeftModel`) is merged into a copy first, so that the checkpoint is a plain one. The folder appears under its name only when it is
    complete.

    Args:
        model: The model; its weights are written in the dtype they are held in (`load(..., dtype="saved")` keeps the checkpoint's).
        heads: The heads to silence.
        mode: `zero` or `uniform`; the scope is `all`.
        folder: A new or empty folder.

    Raises:
        HeadwiseError: Mode `mean`, heads of another model, weights that cannot be edited, a folder that holds something, or a full disk.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HeadwiseError(f"{folder} exists and is not an empty folder; give a new one")
    chosen = model.check(heads)
    if not len(chosen):
        raise HeadwiseError("no head to ablate; choose at least one")
    source = describe_model(model)
    if model.adapter is not None:
        check_unpacked(model)
        source["adapter"] |= {"merged": True}
        model = Model(merged(model.adapter), model.tokenizer, model.name)
    elif parts := adapted_parts(model.hf):
        raise HeadwiseError(
            f"{parts[0]} has an adapter, and the PeftModel around the model is needed to merge it; wrap that in headwise.Model, "
            "or call its merge_and_unload() first"
        )
    note = {
        "mode": mode,
        "scope": "all",
        "heads": [str(head) for head in chosen],
        "chosen_by": chosen.chosen_by,
        "source": source,
    }
    with appearing(folder, model.hf.get_memory_footprint()) as temporary:
        with restored(model, {head.layer for head in chosen}):
            silence_in_weights(model.hf, chosen, mode)
            model.hf.save_pretrained(temporary)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(temporary)
        write_json(note, temporary / NOTE)


@contextmanager
def appearing(folder: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name at the end; nothing is left if the block fails. size: bytes to come."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < size + SPARE:
            raise HeadwiseError(
                f"{folder} needs {size / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free there; nothing was written"
            )
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
        made = []
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise HeadwiseError(f"could not write {folder}: {reason}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def restored(model: Model, layers: Collection[int]) -> Iterator[None]:
    """What the block does to the weights of attention in these layers is undone at its end, bit for bit."""
    modules = [model.modules[layer] for layer in sorted(set(layers) & set(model.modules))]
    kept = [(parameter, parameter.detach().clone()) for module in modules for parameter in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)
