"""On which devices the layers of a model lie: one device, or several and the disk by accelerate's device map."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError, MissingExtraError

WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
OFF = ("cpu", "disk")  # places that hold layers between passes


def checked_map(device_map: str | Mapping[str, Any] | None, offload_folder: Path | str | None, device: str) -> Any:
    """The device map as accelerate takes it; None for a model that lies on one device.

    Args:
        device_map: One of `WAYS`, or name of a module -> `cpu`, `disk`, the number of a CUDA device, or its name.
        offload_folder: Where layers on the disk are kept.
        device: The device that was asked for beside it.

    Raises:
        HeadwiseError: No such map, a device that is not there, or two answers to one question.
        MissingExtraError: accelerate is not installed.
    """
    if device_map is None:
        if offload_folder is not None:
            raise HeadwiseError(
                "offload_folder is read only with a device_map that puts modules on the disk; give one, or leave it out"
            )
        return None
    if device != "auto":
        raise HeadwiseError(f"device={device!r} and device_map both say where the model lies; leave one of them out")
    if isinstance(device_map, str):
        if device_map not in WAYS:
            raise HeadwiseError(f"unknown device_map {device_map!r}; use {', '.join(WAYS)}, or a dict of modules and devices")
    elif not isinstance(device_map, Mapping) or not device_map:
        raise HeadwiseError(f"device_map takes {', '.join(WAYS)}, or a dict of modules and devices; got {device_map!r}")
    else:
        for module, place in device_map.items():
            _check_place(module, place)
        if "disk" in device_map.values() and offload_folder is None:
            raise HeadwiseError("device_map puts modules on the disk; say where with offload_folder")
    require_accelerate()
    return device_map if isinstance(device_map, str) else dict(device_map)


def _check_place(module: str, place: Any) -> None:
    count = torch.cuda.device_count()
    number = place if isinstance(place, int) and not isinstance(place, bool) else None
    text = str(place)
    if text == "cuda" or text.startswith("cuda:"):
        number = int(text[5:] or 0) if text[5:].isdecimal() or text == "cuda" else None
    elif number is None and text in (*OFF, "mps"):
        return
    if number is None:
        raise HeadwiseError(f"device_map puts {module!r} on {place!r}; use cpu, disk, or the number of a CUDA device")
    if not 0 <= number < count:
        raise HeadwiseError(f"device_map puts {module!r} on CUDA device {number}; this torch sees {count}")


def needs_several(config: Any, dtype: Any) -> bool:
    """Whether `--device auto` spreads a model: there are several CUDA devices, or it does not fit on the one there is.

    Args:
        config: The model's configuration.
        dtype: That it is loaded in: a torch dtype, or `auto` for that of the checkpoint.

    Raises:
        MissingExtraError: It does not fit, and accelerate is not installed.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return False
    fits = size_of(config, dtype) < torch.cuda.mem_get_info(0)[0]
    try:
        require_accelerate()
    except MissingExtraError:
        if fits:
            return False
        raise
    return count > 1 or not fits


def size_of(config: Any, dtype: Any) -> int:
    """Bytes of the weights of a model in a dtype (`auto`: that of the checkpoint), as if they were not packed. No weight is read."""
    kind: torch.dtype = dtype if isinstance(dtype, torch.dtype) else getattr(config, "dtype", None) or torch.float32
    return weight_bytes(skeleton_of(config, kind), kind)


def weight_bytes(hf: Any, dtype: torch.dtype) -> int:
    """Bytes of all parameters of a transformers model in a dtype; tied ones count once."""
    count: int = sum(prod(parameter.shape) for parameter in hf.parameters())
    return count * int(dtype.itemsize)


def skeleton_of(config: Any, dtype: torch.dtype) -> Any:
    """The transformers model of a configuration on torch's meta device: all shapes and no numbers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)  # which writes into it


def require_accelerate() -> None:
    """Raise unless accelerate is installed; the message names the extra."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("accelerate", "devices") from error


def is_spread(hf: Any) -> bool:
    """Whether accelerate says where the layers of a model lie; `hf.to(device)` must then be left alone."""
    return len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1 or is_offloaded(hf)


def is_offloaded(hf: Any) -> bool:
    """Whether some weights are moved in for their own layer's pass only."""
    return any(parameter.is_meta for parameter in hf.parameters())
