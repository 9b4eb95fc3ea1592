"""A compressed cache on disk: one safetensors file with the tensors of every layer, and what the cache belongs to.

The file is written whole or not at all, and continues bit for bit: keys keep their rotation, windows their order, and layers that are not
compressed (sliding windows, recurrent states) their states.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from headwise.caches.groups import EMPTY, Group, Growing, Sliding, Window
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import Compressor, Keep, KeptLayer, View
from headwise.heads.errors import HeadwiseError
from headwise.heads.files import write_atomically
from headwise.heads.text import reason
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model, device_of

SCHEMA, KEY = 2, "headwise_cache"  # 2: digests of weights and tokenizer, and which rotary table the keys have
MOST = 2**40  # tokens, where a model names no limit
LONGEST = 1000  # letters of a method's options that a file holds; they are not compared
Tensors = dict[str, Tensor]


def save_cache(cache: KeptCache, path: Path) -> None:
    """Write a cache whose prefill has ended. The file appears whole or not at all.

    Args:
        cache: Of a `compress` block, filled. Its tensors are copied to the CPU one by one.
        path: A new file; its folder is made if need be.

    Raises:
        HeadwiseError: The file exists or cannot be written, the cache is empty, or its prefill has not ended.
    """
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
        "model": cache.model.name,
        "tokens": cache.get_seq_length(),
        "rotary table": getattr(cache, "headwise_table", None),
        "layers": layers,
    }
    write_atomically(path, safetensors.torch.save(tensors, {KEY: json.dumps(about)}))


def load_cache(path: Path, model: Any, compressor: Compressor | None = None) -> KeptCache:
    """The saved cache, every layer on the device of its attention; use it inside an `attached` or `compress` block of this model.

    Args:
        path: A file of `save_cache`.
        model: A `Model`, or a transformers model. It must have the weights (and, if both are known, the tokenizer) of the one that saved.
        compressor: The method, of the kind that made the file. None: the cache goes on, but it cannot be filled anew.

    Raises:
        HeadwiseError: A missing, broken or changed file, or one of another model, dtype or kind of method.
    """
    about, tensors = _read(path)
    method = about.get("method")
    cache = KeptCache(model, Filled(str(method)) if compressor is None else compressor)
    saved, own = dict(about["belongs"]), _belongs(cache, cache.model.hf.dtype)
    for name in own:
        if saved.get(name) != own[name] and not (name == "tokenizer" and None in (saved.get(name), own[name])):
            raise HeadwiseError(
                f"{path} is the cache of another model: {name} {saved.get(name)!r}, but this model has {own[name]!r}"
            )
    if compressor is not None and method != type(compressor).__name__:
        raise HeadwiseError(f"{path} was made by {method}; give that method instead of {type(compressor).__name__}")
    try:
        _check(about, tensors, cache)
        for i, (layer, facts) in enumerate(zip(cache.layers, about["layers"], strict=True)):
            device = device_of(cache.model.modules.get(i, cache.model.hf))
            found = {name.partition(".")[2]: t.to(device) for name, t in tensors.items() if name.startswith(f"{i}.")}
            if isinstance(layer, KeptLayer):
                _restore_kept(layer, facts, found, cache, about["tokens"])
            else:
                _restore_other(layer, facts, found, about["tokens"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise HeadwiseError(f"{path} is a broken cache file ({reason(error)}); read the prompt again") from error
    cache.headwise_length, cache.headwise_table = None, about["rotary table"]
    return cache


@dataclass(frozen=True)
class Filled:
    """Stands for the method of a cache that was filled elsewhere.

    Attributes:
        name: Of the method, for messages.
    """

    name: str
    prefill: str = field(default="dense", init=False)

    def check(self, model: Model) -> None:
        """Fits all models."""

    def streams(self, layer: int, model: Model) -> None:
        """No windows: those of the file are in its groups."""

    def kept(self, view: View) -> Sequence[Keep]:
        """Always raises `HeadwiseError`: the method is not there, only what it kept."""
        raise HeadwiseError(
            f"a cache from a file can be continued, but not filled again; open a `compress` block with {self.name}"
        )


def _check(about: dict[str, Any], tensors: Tensors, cache: KeptCache) -> None:
    """`ValueError` for numbers that no cache of this model can have."""
    tokens, table = about["tokens"], about["rotary table"]
    if not _is_count(tokens) or not 0 < tokens <= (cache.model.positions or MOST):
        raise ValueError(f"{tokens!r} tokens")
    if table is not None and not _is_count(table):
        raise ValueError(f"rotary table {table!r}")
    if not isinstance(about["layers"], list):
        raise ValueError("layers")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not path.is_file():
        raise HeadwiseError(f"no such cache file: {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise HeadwiseError(f"{path} cannot be read as a cache file: {error}") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or not isinstance(about.get("belongs"), dict):
        raise HeadwiseError(f"{path} is no cache file that this headwise reads; read the prompt again")
    return about, tensors


def _belongs(cache: KeptCache, dtype: torch.dtype) -> dict[str, Any]:
    """What a model must share with the one that filled the cache."""
    model = cache.model
    return {
        "layers": len(cache.layers),
        "query heads": model.heads.shape[1],
        "KV heads": model.heads.kv_heads,
        "head width": model.heads.head_dim,
        "skipped layers": cache.skipped,
        "dtype": str(dtype),
        "weights": weights_digest(model.hf),
        "tokenizer": None if model.tokenizer is None else tokenizer_digest(model.tokenizer),
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


def _restore_kept(layer: KeptLayer, facts: dict[str, Any], tensors: Tensors, cache: KeptCache, tokens: int) -> None:
    heads, dtype = cache.model.heads, cache.model.hf.dtype
    if facts["seen"] != tokens or not facts["groups"]:
        raise ValueError(f"{facts['seen']!r} tokens in a cache of {tokens}")
    groups = [
        _restored_group(own, {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{i}.")}, tokens)
        for i, own in enumerate(facts["groups"])
    ]
    for group in groups:
        if group.keys.shape[3] != heads.head_dim or group.keys.dtype != dtype or group.values.dtype != dtype:
            raise ValueError(f"keys of shape {tuple(group.keys.shape)} and type {group.keys.dtype}")
    found = [head for group in groups for head in (range(heads.kv_heads) if group.heads is None else group.heads.tolist())]
    if sorted(found) != list(range(heads.kv_heads)) or len({len(group.keys) for group in groups}) > 1:
        raise ValueError(f"groups of the KV heads {found}")
    for group in groups:
        if group.keys.shape[1] != (heads.kv_heads if group.heads is None else len(group.heads)):
            raise ValueError(f"keys of shape {tuple(group.keys.shape)}")
    counts = tensors.get("counts")
    if counts is not None:
        if counts.dtype != torch.int64 or counts.shape != (len(groups[0].keys),):
            raise ValueError("counts")
        if not bool(((counts >= 0) & (counts <= tokens)).all()):
            raise ValueError(f"{counts.tolist()} real tokens of {tokens}")
    layer.groups, layer.seen, layer._counts, layer.is_initialized = groups, tokens, counts, True


def _restored_group(facts: dict[str, Any], tensors: Tensors, tokens: int) -> Group:
    heads, keys, values, positions = tensors.get("heads"), tensors["keys"], tensors["values"], tensors["positions"]
    used, holes, exact, window = (facts[name] for name in ("used", "holes", "exact", "window"))
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3] or not keys.shape[0]:
        raise ValueError(f"keys of shape {tuple(keys.shape)}, values of shape {tuple(values.shape)}")
    batch, count, room, _ = keys.shape
    if heads is not None and (heads.dtype != torch.int64 or heads.dim() != 1):
        raise ValueError("heads")
    if not isinstance(holes, bool) or not isinstance(exact, bool) or not _is_count(used) or used > min(room, tokens):
        raise ValueError(f"{used!r} places of {room}")
    if positions.dtype != torch.int32 or positions.dim() != 3 or positions.shape[2] != room:
        raise ValueError(f"positions of shape {tuple(positions.shape)} and type {positions.dtype}")
    if positions.shape[0] not in (1, batch) or positions.shape[1] not in (1, count):
        raise ValueError(f"positions of shape {tuple(positions.shape)}")
    inside = positions[..., :used]
    if not bool(((inside >= (EMPTY if holes else 0)) & (inside < tokens)).all()):
        raise ValueError(f"positions outside of {tokens} tokens")
    common: dict[str, Any] = {"used": used, "holes": holes}
    if window is None:
        if used != room:
            raise ValueError(f"{used} places of {room}")
        return Growing(heads, keys, values, positions, **common)
    sinks, recent = window
    if not _is_count(sinks) or not _is_count(recent) or recent < 1 or sinks + recent != room:
        raise ValueError(f"a window of {window} in {room} places")
    return Sliding(heads, keys, values, positions, **common, window=Window(sinks, recent), exact=exact)


# Attributes that layers of transformers 5.22 have only from their first tokens on.
LATER = ("dtype", "device", "keys", "values")


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


def _restore_other(layer: Any, facts: dict[str, Any], tensors: Tensors, tokens: int) -> None:
    """What changes while a layer is used comes from the file; what the model's configuration decides must be as it is there."""
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    for key, value in {**facts, **tensors}.items():
        name, _, number = key.partition(".")
        own = vars(layer)
        if name not in own and name not in LATER:
            raise ValueError(f"a layer of another kind, with {name!r}")
        if number:
            if not isinstance(own[name], dict) or type(value) not in (bool, int, Tensor, type(None)):
                raise ValueError(f"{key} {value!r}")
            own[name][int(number)] = value
        elif name == "dtype":
            if value not in (None, str(dtype)):
                raise ValueError(f"dtype {value!r}")
            layer.dtype = dtype if value else None
        elif isinstance(value, Tensor):
            setattr(layer, name, value)
        elif name == "cumulative_length":
            if value != tokens:
                raise ValueError(f"{value!r} tokens in a cache of {tokens}")
            layer.cumulative_length = value
        elif name == "is_initialized" and isinstance(value, bool):
            layer.is_initialized = value
        elif value is not None and value != own[name]:
            raise ValueError(f"{name} {value!r}")
    layer.device = next((tensor.device for tensor in tensors.values()), None)
