"""The one attention function that headwise registers with transformers, and the mask function that must go with it.

Both are *added* under a name of our own; no entry of transformers is replaced and no class is patched. Without a registered mask
function transformers would pass no mask at all, also for padded batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from headwise.attention.depth import LayerReachedError
from headwise.attention.plan import NAME, Call, no_dropout, plan_for_module
from headwise.attention.provider import KeyProvider
from headwise.attention.tail import padded
from headwise.heads.errors import HeadwiseError
from headwise.maths.attend import attend


def register() -> None:
    """Make the name known (idempotent)."""
    AttentionInterface.register(NAME, headwise_attention)
    AttentionMaskInterface.register(NAME, headwise_mask)


def headwise_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | KeyProvider,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention plus whatever the model's plan asks for. Shapes as transformers passes them; returns ([B, T, H, d], None)."""
    no_dropout(dropout)
    plan, layer = plan_for_module(module)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(key, Tensor):
        if plan.taps or plan.edits or plan.last is not None:
            raise HeadwiseError("attention over a compressed cache cannot be observed, changed or cut short")
        return key.attend(query, scaling=scaling, softcap=softcap, sinks=s_aux), None
    past = plan.past.get(layer)
    start = plan.start(layer, query.shape[2], key.shape[2] + (past[0].shape[2] if past else 0)) if plan.edits else 0
    for edit in plan.edits:
        query = edit.query(layer, query, start)
    if plan.last == layer and not plan.taps:
        raise LayerReachedError
    total = query.shape[2]
    wanted = min(plan.tail[1], total) if plan.tail and plan.tail[0] == layer else total
    rows, mask = query, attention_mask
    if wanted < total:
        rows, mask = query[:, :, -wanted:], None if mask is None else mask[:, :, -wanted:]
    out = padded(attend(rows, key, value, scaling=scaling, mask=mask, past=past, softcap=softcap, sinks=s_aux), total)
    if plan.taps or plan.edits or plan.keeper:
        keys = (past[0], key) if past else (key,)
        values = (past[1], value) if past else (value,)
        call = Call(layer, query, keys, values, attention_mask, scaling, softcap, s_aux, out)
        for tap in plan.taps:
            tap(call)
        for edit in plan.edits:
            out = edit.output(call, out, start)
        if plan.keeper:
            plan.keeper(call)
    if plan.last == layer:
        raise LayerReachedError
    return out, None


def headwise_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **rest: Any,
) -> Tensor | None:
    """A bool mask [B, 1, T, S], or None where plain causal attention over all keys is meant, also for T > 1 over a past."""
    whole = kv_offset == 0 and int(q_offset) + q_length == kv_length and (local_size is None or kv_length < local_size)
    unpadded = attention_mask is None or bool(attention_mask[:, :kv_length].all())
    if allow_is_causal_skip and whole and unpadded:
        return None
    mask: Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        **rest,
    )
    return mask if mask is None or mask.dtype == torch.bool else mask.bool()
