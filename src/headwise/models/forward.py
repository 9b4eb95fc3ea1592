"""The one place that calls a model with a cache: the name of that argument changes between releases of transformers.

Rotary tables may depend on how long the text is (`longrope`, `dynamic`). transformers chooses the table of each pass by the positions of that
pass, so that keys of an earlier one keep another rotation than the queries that look at them. Here a text has one table: that of its total
length. A cache remembers with which table its keys were turned.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headwise.heads.errors import HeadwiseError
from headwise.models.model import check_ids, device_of

KINDS = ("dynamic", "longrope")
_MODULES: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def forward(hf: Any, input_ids: Tensor, cache: Any, **options: Any) -> Any:
    """One pass of a transformers model over a cache. The argument is `past_key_values` up to transformers 5.23 and `cache` from 5.24 on.

    Where the rotary table depends on the text's length, see `one_table`.

    Args:
        hf: The model.
        input_ids: [B, T], appended to the cache.
        cache: A cache of transformers.
        options: Go to the model as they are.

    Returns:
        What the model returns.
    """
    kind: Any = type(hf)
    name = cache_argument(kind)
    with one_table(hf, cache, input_ids.shape[1], options.get("position_ids")):
        return hf(input_ids=input_ids, use_cache=True, **{name: cache}, **options)


@cache
def cache_argument(kind: Any) -> str:
    """What the `forward` of a model class calls its cache."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def token_tensor(model: Any, ids: Sequence[int], rows: int = 1) -> Tensor:
    """[rows, T] int64 on the model's device, the same ids in each row. Raises `HeadwiseError` for an id that the model does not know."""
    check_ids(model, min(ids, default=0), max(ids, default=0))
    return torch.tensor([list(ids)], dtype=torch.int64, device=device_of(model)).expand(rows, -1)


def table_of(hf: Any, tokens: int) -> int | None:
    """Which rotary table a text of so many tokens gets: texts with the same number share one. None: the model has one table for all."""
    found = None
    for module in _modules(hf):
        for name, kind in _kinds(module).items():
            switch = _switch(module, name)
            own = 0 if tokens <= switch else switch + 1 if kind == "longrope" else tokens
            found = max(found or 0, own)
    return found


def set_length(cache: Any, tokens: int | None) -> None:
    """Say how long the text in a cache will be in the end; every pass over it then uses the table of that length. None: no longer known."""
    cache.headwise_length = tokens


@contextmanager
def one_table(hf: Any, cache: Any, tokens: int, positions: Tensor | None = None) -> Iterator[None]:
    """Run a pass that appends `tokens` tokens to a cache with the table that fits the whole text.

    Args:
        hf: A transformers model.
        cache: What the pass is appended to.
        tokens: New tokens of each row.
        positions: [B, tokens], their positions if the batch has padding.

    Raises:
        HeadwiseError: The keys in the cache were turned with another table.
    """
    if not _modules(hf):
        yield
        return
    before = cache.get_seq_length()
    reached = before + tokens if positions is None else int(positions.max()) + 1
    length = max(getattr(cache, "headwise_length", None) or 0, reached)
    table = table_of(hf, length)
    held = getattr(cache, "headwise_table", None) if before else table
    if before and held is None:
        held = table_of(hf, before)
    if table != held:
        kinds = sorted({kind for module in _modules(hf) for kind in _kinds(module).values()})
        raise HeadwiseError(
            f"the rotary table of this model depends on the text's length ({', '.join(kinds)}), and {length} tokens need another one than the "
            f"{before} in the cache; read the text in one pass, or keep it below {min(_switches(hf)) + 1} tokens"
        )
    cache.headwise_table = table
    with _as_long_as(hf, length):
        yield


@contextmanager
def _as_long_as(hf: Any, length: int) -> Iterator[None]:
    """Rotary modules choose the table of a text of `length` tokens, whatever was read before, and are left as they were."""
    modules = _modules(hf)
    states = [({k: v for k, v in vars(module).items() if not k.startswith("_")}, dict(module._buffers)) for module in modules]
    handles = []
    try:
        for module in modules:
            _forget(module)
            handles.append(module.register_forward_pre_hook(_appending(length - 1), with_kwargs=True))
            handles.append(module.register_forward_hook(_without_last))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, (own, buffers) in zip(modules, states, strict=True):
            for name in [name for name in vars(module) if not name.startswith("_") and name not in own]:
                del vars(module)[name]
            vars(module).update(own)
            module._buffers.update(buffers)


def _forget(module: Any) -> None:
    """Back to the table of short texts: `dynamic` keeps that of the longest text so far."""
    for name in _kinds(module):
        original = getattr(module, f"{name}original_inv_freq", None)
        if original is not None:
            module._buffers[f"{name}inv_freq"] = original.to(module._buffers[f"{name}inv_freq"].device, copy=True)
        setattr(module, f"{name}max_seq_len_cached", _switch(module, name))


def _appending(position: int) -> Any:
    """Pre-hook: one more position behind those of the pass; the longest one decides about the table."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places = options["position_ids"] if "position_ids" in options else inputs[1]
        longer = torch.cat([places, torch.full_like(places[..., :1], position)], dim=-1)
        if "position_ids" in options:
            return inputs, options | {"position_ids": longer}
        return (inputs[0], longer, *inputs[2:]), options

    return hook


def _without_last(_: nn.Module, __: Any, output: Any) -> Any:
    """Hook: without the position that was added."""
    return tuple(part[..., :-1, :] for part in output)


def _modules(hf: Any) -> list[Any]:
    """The model's rotary modules whose table depends on the length."""
    if hf not in _MODULES:
        _MODULES[hf] = [module for module in hf.modules() if _kinds(module)]
    return _MODULES[hf]


def _kinds(module: Any) -> dict[str, str]:
    """Prefix of a module's buffers -> the kind of its table, where that depends on the length."""
    kind = getattr(module, "rope_type", None)
    kinds = {f"{layer}_": own for layer, own in kind.items()} if isinstance(kind, dict) else {"": kind}
    return {prefix: own for prefix, own in kinds.items() if own in KINDS}


def _switches(hf: Any) -> list[int]:
    return [_switch(module, name) for module in _modules(hf) for name in _kinds(module)]


def _switch(module: Any, name: str) -> int:
    """Longest text in tokens that gets the table of short texts."""
    options = module.config.rope_parameters
    own = options.get(name.removesuffix("_"), options) if name else options
    if _kinds(module)[name] == "longrope":
        return int(own["original_max_position_embeddings"])
    return int(module.original_max_seq_len)


def check_finite(logits: Tensor) -> None:
    """Raise `HeadwiseError` if a logit is NaN or infinite: an argmax over them means nothing."""
    if not torch.isfinite(logits).all():
        raise HeadwiseError("the model's logits are not finite (NaN or infinity); try --dtype float32 or another checkpoint")


def finite_scores(ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor for transformers' `generate` that changes nothing.

    Args:
        ids: Not looked at.
        scores: [B, vocabulary]; -inf is allowed, for tokens that a generation configuration forbids.

    Returns:
        The same scores.

    Raises:
        HeadwiseError: See `check_finite`.
    """
    check_finite(scores.masked_fill(scores == -torch.inf, 0))
    return scores
