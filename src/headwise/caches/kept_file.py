"""A compressed cache on disk: one safetensors file with the tensors of every layer, and what the cache belongs to.

The file is written whole or not at all, and continues bit for bit: keys keep their rotation, windows their order, and layers that are not
compressed (sliding windows, recurrent states) their states.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from headwise.attention.plan import device_of
from headwise.caches.groups import Group, Growing, Sliding, Window
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import Compressor, KeptLayer
from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import write_atomically

SCHEMA, KEY = 1, "headwise_cache"
LONGEST = 1000  # letters of a method's options that a file holds; they are not compared
Tensors = dict[str, Tensor]


def save_cache(cache: KeptCache, path: Path) -> None:
    """Write a cache whose prefill has ended. An existing file is refused."""
    if path.exists():
        raise HeadwiseError(f"{path} exists; give another name (caches are never replaced)")
    if not cache.get_seq_length() or any(layer.groups is None for layer in cache.kept_layers.values()):
        raise HeadwiseError("only a cache whose prefill has ended can be saved")
    tensors: Tensors = {}
    layers = []
    for i, layer in enumerate(cache.layers):
        facts, own = _kept_state(layer) if isinstance(layer, KeptLayer) else _other_state(layer)
        layers.append(facts)
        tensors |= {
            f"{i}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in own.items()
        }
    about = {
        "schema": SCHEMA,
        "headwise": importlib.metadata.version("headwise"),
        "belongs": _belongs(cache, next(iter(cache.kept_layers.values())).groups[0].keys.dtype),  # type: ignore[index]  # groups exist
        "method": type(cache.compressor).__name__,
        "compressor": repr(cache.compressor)[:LONGEST],
        "tokens": cache.get_seq_length(),
        "layers": layers,
    }
    write_atomically(path, safetensors.torch.save(tensors, {KEY: json.dumps(about)}))


def load_cache(path: Path, model: Any, compressor: Compressor) -> KeptCache:
    """The saved cache, on the model's device; use it inside a `compress` block of this model.

    Raises `HeadwiseError` for a missing or broken file, and for one of another model, dtype or kind of method.
    """
    about, tensors = _read(path)
    cache = KeptCache(model, compressor)
    saved = dict(about.get("belongs") or {})
    for name, own in _belongs(cache, model.dtype).items():
        if saved.get(name) != own:
            raise HeadwiseError(f"{path} is the cache of another model: {name} {saved.get(name)!r}, but this model has {own!r}")
    method = type(compressor).__name__
    if about.get("method") != method:
        raise HeadwiseError(f"{path} was made by {about.get('method')}; give that method instead of {method}")
    try:
        for i, (layer, facts) in enumerate(zip(cache.layers, about["layers"], strict=True)):
            found = {name.partition(".")[2]: t.to(device_of(model)) for name, t in tensors.items() if name.startswith(f"{i}.")}
            if isinstance(layer, KeptLayer):
                _restore_kept(layer, facts, found, (cache.model.heads.kv_heads, cache.model.heads.head_dim))
            else:
                _restore_other(layer, facts, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadwiseError(f"{path} is a broken cache file ({error!r}); read the prompt again") from error
    return cache


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not path.is_file():
        raise HeadwiseError(f"no such cache file: {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise HeadwiseError(f"{path} cannot be read as a cache file: {error}") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise HeadwiseError(f"{path} is no cache file that this headwise reads; read the prompt again")
    return about, tensors


def _belongs(cache: KeptCache, dtype: torch.dtype) -> dict[str, Any]:
    """What a model must share with the one that filled the cache."""
    model = cache.model
    return {
        "name": model.name,
        "layers": len(cache.layers),
        "query heads": model.heads.shape[1],
        "KV heads": model.heads.kv_heads,
        "head width": model.heads.head_dim,
        "skipped layers": cache.skipped,
        "dtype": str(dtype),
    }


def _kept_state(layer: KeptLayer) -> tuple[dict[str, Any], Tensors]:
    groups = [_group_state(group) for group in layer.groups or ()]
    tensors = {f"{i}.{name}": tensor for i, (_, own) in enumerate(groups) for name, tensor in own.items()}
    if layer._counts is not None:
        tensors["counts"] = layer._counts
    return {"seen": layer.seen, "groups": [facts for facts, _ in groups]}, tensors


def _group_state(group: Group) -> tuple[dict[str, Any], Tensors]:
    """A window with all its places, which have an order; of others what is used."""
    window = list(group.window) if isinstance(group, Sliding) else None
    room = group.used if window is None else group.keys.shape[2]
    facts = {"used": group.used, "holes": group.holes, "window": window, "exact": isinstance(group, Sliding) and group.exact}
    tensors = {"keys": group.keys[:, :, :room], "values": group.values[:, :, :room], "positions": group.positions[..., :room]}
    return facts, tensors if group.heads is None else tensors | {"heads": group.heads}


def _restore_kept(layer: KeptLayer, facts: dict[str, Any], tensors: Tensors, shape: tuple[int, int]) -> None:
    """shape: KV heads of the layer, and the width of their keys."""
    groups = [
        _restored_group(own, {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{i}.")}, shape)
        for i, own in enumerate(facts["groups"])
    ]
    heads = [head for group in groups for head in (range(shape[0]) if group.heads is None else group.heads.tolist())]
    if sorted(heads) != list(range(shape[0])):
        raise ValueError(f"groups of the KV heads {heads}")
    layer.groups, layer.seen, layer._counts, layer.is_initialized = groups, int(facts["seen"]), tensors.get("counts"), True


def _restored_group(facts: dict[str, Any], tensors: Tensors, shape: tuple[int, int]) -> Group:
    heads, keys, values, positions = tensors.get("heads"), tensors["keys"], tensors["values"], tensors["positions"]
    expected = (keys.shape[0], shape[0] if heads is None else len(heads), keys.shape[2])
    if keys.shape[:3] != expected or values.shape[:3] != expected or keys.shape[3] != shape[1]:
        raise ValueError(f"keys of shape {tuple(keys.shape)}")
    if positions.shape[-1] != keys.shape[2] or not 0 <= facts["used"] <= keys.shape[2]:
        raise ValueError(f"{facts['used']} places of {keys.shape[2]}")
    common: dict[str, Any] = {"used": facts["used"], "holes": facts["holes"]}
    if facts["window"] is None:
        return Growing(heads, keys, values, positions, **common)
    return Sliding(heads, keys, values, positions, **common, window=Window(*facts["window"]), exact=facts["exact"])


def _other_state(layer: Any) -> tuple[dict[str, Any], Tensors]:
    """A layer of transformers: its tensors, also those in dictionaries, and its plain values. Its device is that of the model."""
    facts: dict[str, Any] = {}
    tensors: Tensors = {}
    for name, value in vars(layer).items():
        parts = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for key, item in parts.items():
            if isinstance(item, Tensor):
                tensors[key] = item
            elif not isinstance(item, torch.device):
                facts[key] = str(item) if isinstance(item, torch.dtype) else item
    return facts, tensors


def _restore_other(layer: Any, facts: dict[str, Any], tensors: Tensors) -> None:
    for key, value in {**facts, **tensors}.items():
        name, _, number = key.partition(".")
        if number:
            getattr(layer, name)[int(number)] = value
        elif name == "dtype":
            layer.dtype = None if value is None else getattr(torch, value.removeprefix("torch."))
        elif name in vars(layer):
            setattr(layer, name, value)
        else:
            raise ValueError(f"a layer of another kind, with {name!r}")
    layer.device = next((tensor.device for tensor in tensors.values()), None)
