"""What is wrong with the files of a checkpoint, as far as it can be seen from outside. Each fault is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError

SHOWN = 3  # names of tensors in a message
LFS = b"version https://git-lfs"
OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json")
WEIGHTS = ("*.safetensors", "*.bin")


def fault_of(folder: Path | None, weights: bool = True) -> str | None:
    """What is wrong with the files of a checkpoint folder, if it can be seen from outside; None if nothing is.

    Args:
        folder: The folder; None where it is not known.
        weights: Look at the weight files too, not only at those that describe the model.
    """
    if folder is None or not folder.is_dir():
        return None
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)) if weights else []
    indexes = sorted(folder.glob("*.index.json"))
    checks = [*map(_fault_of_file, sorted(folder.glob("*.json"))), *map(_fault_of_index, indexes), *map(_fault_of_file, files)]
    if weights and not files and not indexes:
        checks.append("it holds no weights (model.safetensors)")
    return next((fault for fault in checks if fault), None) or _fault_of_folder(folder)


def _fault_of_folder(folder: Path) -> str | None:
    """A folder without what makes it a model's; transformers' words for it send the reader into a file that is not there."""
    if not any(folder.iterdir()):
        return "it is an empty folder; give one with config.json, tokenizer and weights"
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "the folder holds no config.json; give one with config.json, tokenizer and weights"
    return None


def _fault_of_index(path: Path) -> str | None:
    try:
        named = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return f"{path.name} is no list of weight files"
    lacking = sorted(name for name in named if not (path.parent / str(name)).exists())
    return f"{path.name} names files that are not there: {some_of(lacking)}" if lacking else None


def _fault_of_file(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            if head.startswith(LFS):
                return f"{path.name} is a git-LFS pointer, not the file itself; run: git lfs pull"
            if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
                return f"{path.name} is a web page, not the file itself; download it anew"
            if not size:
                return f"{path.name} is empty"
            if path.suffix == ".safetensors":
                file.seek(8)
                return _fault_of_tensors(path.name, size, int.from_bytes(head[:8], "little"), file)
            if path.suffix == ".json":
                value = json.loads(head + file.read())
                return None if isinstance(value, dict) or path.name not in OBJECTS else f"{path.name} is no JSON object"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{path.name} is not JSON"
    return None


def _fault_of_tensors(name: str, size: int, header: int, file: Any) -> str | None:
    """The head of a safetensors file says where its tensors lie; a file that was cut off is shorter."""
    if 8 + header > size:
        return f"{name} is cut off or no safetensors file"
    try:
        entries = json.loads(file.read(header))
        end = max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        return f"{name} is no safetensors file"
    return None if 8 + header + end == size else f"{name} is cut off: {size} bytes, its head names {8 + header + end}"


def parameters_in(folder: Path) -> int | None:
    """How many numbers the tensors of a folder's safetensors files hold, from the heads of the files; None if there are none that can be read."""
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "np") as file:
                names = file.keys()
                count += sum(prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError):
        return None
    return count or None


def some_of(names: Iterable[str]) -> str:
    """At most three names, and how many there are beside them."""
    ordered = sorted(names, key=_natural)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def refused(name: str, error: Exception, fault: str | None, hint: str = "") -> HeadwiseError:
    """One line for whatever the libraries raised. fault: what is wrong with the files, if it was seen."""
    text = str(error)
    if "trust_remote_code" in text:
        hint = "look at the code, then allow it with trust_remote_code=True (--trust-remote-code)"
        return HeadwiseError(f"model {name!r} comes with its own Python code, which runs only if you allow it; {hint}")
    homeless = re.search(r"device_map provided does not give any device for the following parameters: (.*)", text)
    if homeless:
        text = f"the device_map names no device for {some_of(homeless[1].split(', '))}"
    seen = fault or text.strip().split("\n")[0].rstrip(".:") or type(error).__name__
    return HeadwiseError(f"cannot load model {name!r}: {seen}" + (f"; {hint}" if hint and not fault else ""))
