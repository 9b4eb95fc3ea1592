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

from headwise.attention.plan import NAME, Call, no_dropout, plan_for_module
from headwise.attention.provider import KeyProvider, Whole


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
    """Attention as the pipeline of the model's plan.

    Args:
        module: The attention module that asks.
        query: [B, H, T, d], after position encoding.
        key: [B, G, S, d] as transformers passes it, or what a cache of ours hands over in place of keys and values.
        value: [B, G, S, d], or the same as `key`.
        attention_mask: [B or 1, 1, T, S], or None for causal.
        scaling: Factor of query times key; None: 1 / sqrt(d).
        dropout: Must be 0.
        softcap: Cap of the logits; see `row_statistics`.
        s_aux: Sink logits [H].

    Returns:
        ([B, T, H, d], None).
    """
    no_dropout(dropout)
    plan, layer = plan_for_module(module)
    source = Whole((key,), (value,), attention_mask) if isinstance(key, Tensor) else key
    call = Call(plan, layer, query, source, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    for chooser in plan.choosing:
        call.source = chooser.choose_keys(call)
    for edit in plan.inputs:
        call.query, call.source = edit.edit_inputs(call)
    for step in plan.looking:
        step.look(call)
    if plan.keeper:
        plan.keeper.look(call)
    return call.output, None


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
