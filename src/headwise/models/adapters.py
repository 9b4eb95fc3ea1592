"""Adapters of peft (LoRA and its kin): loaded from their folder, merged for an export. Nothing here imports peft unless one is loaded."""

from __future__ import annotations

import copy
import json
import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.models.checkpoint import fault_of, some_of
from headwise.models.fingerprint import tensors_digest

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NAME = "headwise_name"  # attribute of a `PeftModel` that keeps what results call its adapter
# What torch says of a tensor of another shape: its name, the shape in the file, the shape in the model.
SHAPES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)")
logger = logging.getLogger("headwise")


def merged(adapter: Any) -> Any:
    """A copy of a `PeftModel` with the adapter added to the weights: a plain transformers model."""
    try:
        return copy.deepcopy(adapter).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise HeadwiseError(f"this adapter cannot be merged into the weights: {str(error).splitlines()[0]}") from error


def adapted_parts(hf: Any) -> list[str]:
    """Names of the layers of a transformers model that an adapter has changed."""
    names = (name.split(".base_layer.")[0] for name, _ in hf.named_parameters() if ".base_layer." in name)
    return list(dict.fromkeys(names))


def base_of(folder: Path) -> str:
    """The name of the model that the adapter in `folder` was made for."""
    try:
        base = json.loads((folder / CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise HeadwiseError(f"{folder / CONFIG} does not name the model of the adapter (base_model_name_or_path)") from error
    if not isinstance(base, str) or not base:
        raise HeadwiseError(f"{folder / CONFIG} does not name the model of the adapter (base_model_name_or_path)")
    return base


def require_peft() -> Any:
    """The class that loads adapters; `MissingExtraError` names the extra where peft is not installed."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "adapters") from error
    return PeftModel


def with_adapter(hf: Any, folder: Path, name: str) -> Any:
    """A `PeftModel` of the transformers model `hf` and the adapter in `folder`, in evaluation mode.

    Args:
        hf: The base model.
        folder: Of the adapter.
        name: What results and messages call the adapter.

    Raises:
        HeadwiseError: The adapter's files are broken, or its tensors are of another model.
        MissingExtraError: peft is not installed.
    """
    wrapper = require_peft()
    if not any((folder / file).is_file() for file in WEIGHTS):  # peft would look for them on the hub, under the folder's name
        raise HeadwiseError(f"the adapter {name!r} holds no weights ({WEIGHTS[0]})")
    fault = fault_of(folder)
    if fault is not None:
        raise HeadwiseError(f"cannot load the adapter {name!r}: {fault}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors that are missing, among others: they are compared below
        try:
            model = wrapper.from_pretrained(hf, str(folder)).eval()
            found = _compared(model, folder)
        except (
            Exception
        ) as error:  # peft, safetensors and torch raise all kinds of errors for a file that is not what it should be
            raise HeadwiseError(_refusal(name, folder, str(error))) from error
    if found.missing_keys:
        raise HeadwiseError(
            f"the adapter {name!r} lacks tensors of the layers it names in {CONFIG}: {some_of(found.missing_keys)}"
        )
    if found.unexpected_keys:
        raise HeadwiseError(
            f"the adapter {name!r} belongs to another model{_made_for(folder)}: here is no {some_of(found.unexpected_keys)}"
        )
    setattr(model, NAME, name)
    return model


def grow_embedding(hf: Any, tokenizer: Any) -> None:
    """Give the embedding a row for every token of the tokenizer; the new rows hold anything until they are filled. It never shrinks.

    Where the output has rows of its own, the new ones are the mean of the others: no adapter need bring them, the model is the same whenever it is
    loaded, and it hardly ever says such a token.
    """
    before = hf.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= before:
        return
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    output = hf.get_output_embeddings()
    if output is not None and output.weight is not hf.get_input_embeddings().weight:
        for own in (output.weight, getattr(output, "bias", None)):
            if own is not None:
                own.data[before:] = own.data[:before].float().mean(dim=0).to(own.dtype)


def _compared(model: Any, folder: Path) -> Any:
    """What of an adapter's file the loaded model lacks or has no place for; peft says so only where it loads the file itself."""
    from peft import load_peft_weights, set_peft_model_state_dict

    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    found.missing_keys[:] = [
        key for key in found.missing_keys if any(prefix in key for prefix in model.base_model.prefix.split())
    ]
    return found


def _refusal(name: str, folder: Path, text: str) -> str:
    shapes = SHAPES.search(text)
    if shapes:
        tensor, own, here = (part.replace(", ", "x") for part in shapes.groups())
        return f"the adapter {name!r} belongs to another model{_made_for(folder)}: its {tensor} has shape {own}, this model needs {here}"
    if "not found in the base model" in text:
        return (
            f"the adapter {name!r} belongs to another model{_made_for(folder)}: none of the layers that it changes is in this one"
        )
    return f"cannot load the adapter {name!r}: {(text.strip().splitlines() or ['it cannot be read'])[0]}"


def _made_for(folder: Path) -> str:
    try:
        return f" (it was made for {base_of(folder)!r})"
    except HeadwiseError:
        return ""


def compare_bases(folder: Path, name: str, bases: Iterable[str]) -> None:
    """Say on standard error if an adapter whose tensors fit was made for a model of another name.

    Args:
        folder: Of the adapter.
        name: Of the adapter.
        bases: Names of the model that it was put on; their last parts count, without capitals.
    """
    try:
        wanted = base_of(folder)
    except HeadwiseError:  # no name, nothing to compare
        return
    last, ours = _last(wanted), [_last(base) for base in bases if base]
    # The name of a GGUF file begins with that of its model: Name-Q8_0.gguf.
    if not any(own == last or own.startswith((last + "-", last + ".")) for own in ours):
        logger.warning("headwise: the adapter %r was made for %r, and is put on %r; its tensors fit", name, wanted, ours[0])


def _last(name: str) -> str:
    return name.rstrip("/").split("/")[-1].lower()


def describe_adapter(adapter: Any) -> dict[str, Any] | None:
    """What results say of the adapter of a `PeftModel`; None where there is none.

    Returns:
        name: That of its folder or hub id; peft's own ("default") for one made in memory. kind: as peft calls it. rank: where it has one.
        digest: 16 hexadecimal digits of its tensors.
    """
    if adapter is None:
        return None
    from peft import get_peft_model_state_dict

    config = adapter.active_peft_config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    rank = getattr(config, "r", None)
    return {
        "name": getattr(adapter, NAME, adapter.active_adapter),
        "kind": str(getattr(config.peft_type, "value", config.peft_type)),
        **({"rank": rank} if isinstance(rank, int) else {}),
        "digest": tensors_digest(sorted(tensors.items())),
    }


def without_adapter(hf: Any) -> Any:
    """The transformers model inside a `PeftModel`, whose layers still run with the adapter.

    Raises:
        HeadwiseError: The adapter is made of virtual tokens (prompt tuning), which only the wrapper adds.
    """
    kind = hf.active_peft_config
    if kind.is_prompt_learning:
        name = getattr(kind.peft_type, "value", kind.peft_type)
        raise HeadwiseError(f"adapters of virtual tokens ({name}) cannot be used; adapters in the weights, such as LoRA, can")
    return hf.get_base_model()
