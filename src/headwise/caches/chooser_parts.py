"""What choosers are made of: attention rows of a few heads, where heads lie, what is read for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headwise.attention.call import Call, Pass, Whole
from headwise.attention.sparse import row_weights
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import Heads
from headwise.models.model import Model


def key_bytes(whole: Whole) -> int:
    """Bytes of all keys of one layer, batch rows together."""
    return sum(keys.numel() * keys.element_size() for keys in whole.keys)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that a step of a transformers model reads: all but an embedding of which it needs one row only."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    found = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return int(found if tied else found - embedding.numel() * embedding.element_size())


def head_weights(call: Call, whole: Whole, heads: Sequence[int]) -> Tensor:
    """[B, n, S] float32: attention weights of the newest row of some heads; only the keys of their KV heads are read."""
    if len(heads) == call.query.shape[1]:
        return row_weights(call, whole)
    each = call.query.shape[1] // whole.keys[-1].shape[1]
    found = []
    for kv in sorted({head // each for head in heads}):
        own = [head for head in heads if head // each == kv]
        part = Whole(tuple(keys[:, kv : kv + 1] for keys in whole.keys), whole.values, whole.mask)
        sinks = None if call.sinks is None else call.sinks[own]
        found.append(row_weights(replace(call, query=call.query[:, own], sinks=sinks), part))
    return torch.cat(found, dim=1)


def check_whole(number: Any, least: int, rule: str) -> None:
    """Refuse what is no whole number from `least` on. Raises `HeadwiseError`, which says the rule."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise HeadwiseError(f"{rule}; got {number!r}")


def in_layers(model: Model, heads: Heads | None, layers: Sequence[int]) -> Mapping[int, list[int]]:
    """Layer -> chosen heads (None: all), of `layers`. Raises `HeadwiseError` if none of the heads lies there."""
    if heads is None:
        return {layer: list(range(model.heads.shape[1])) for layer in layers}
    found = {layer: own for layer, own in model.by_layer(heads).items() if layer in set(layers) and own}
    if not found:
        raise HeadwiseError(f"none of the heads lies in a layer of {model.name} with full attention, so none of them can choose")
    return found


def token_order(now: Pass, tokens: int) -> tuple[Tensor, Tensor]:
    """How the tokens of a pass follow one another where rows have padding: in front, behind a prompt, or between turns.

    Args:
        now: The pass.
        tokens: T, how many it has.

    Returns:
        ([B or 1, T] position of the last token in front of each, -1 where there is none; [B or 1, S] place of every position among the tokens).
    """
    mask, length = now.mask, now.before + tokens
    order = torch.arange(length)[None]
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < length:
        return order[:, now.before :] - 1, order
    seen = mask[:, :length].bool()
    last = torch.where(seen, order.to(seen.device), -1).cummax(dim=1).values
    return torch.nn.functional.pad(last, (1, 0), value=-1)[:, now.before : length], (seen.cumsum(dim=1) - 1).clamp(min=0)
