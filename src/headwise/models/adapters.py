"""Adapters of peft (LoRA and its kin): loaded from their folder, merged for an export. Nothing here imports peft unless one is loaded."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError, MissingExtraError

CONFIG = "adapter_config.json"


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
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def with_adapter(hf: Any, folder: Path) -> Any:
    """A `PeftModel` of the transformers model `hf` and the adapter in `folder`, in evaluation mode.

    Raises:
        HeadwiseError: The adapter's files are broken, or do not fit the model.
        MissingExtraError: peft is not installed.
    """
    wrapper = require_peft()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            model = wrapper.from_pretrained(hf, str(folder)).eval()
        except (
            Exception
        ) as error:  # peft, safetensors and torch raise all kinds of errors for a file that is not what it should be
            raise HeadwiseError(f"cannot load the adapter in {folder}: {str(error).strip().splitlines()[0]}") from error
    missing = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
    if missing:
        raise HeadwiseError(f"the adapter in {folder} lacks tensors of the layers it names in {CONFIG}")
    return model
