"""Exact attention for every case that headwise meets, with the fast kernel wherever one fits.

The cases: a plain prompt, new tokens over a cached past, many batch rows over one *shared* past, an explicit mask (padding,
sliding window), capped logits (Gemma 2), sink logits (gpt-oss). Two attentions over disjoint keys are merged exactly by their
log-sum-exp, so a block of new tokens over a long past needs no mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.maths.rows import Keys, grouped_product, visible_logits

EXPLICIT_LOGITS = 2**24  # logits held at once by the explicit path


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention. Gradients pass.

    Args:
        query: [B, H, T, d]; the T queries are the last T positions.
        key: [B, G, S, d], H % G == 0.
        value: [B, G, S, width of values].
        scaling: Factor of query times key.
        mask: Bool (True = visible) or float (added) [B or 1, 1 or H, T, P + S]; None means causal.
        past: Keys and values [1, G, P, d] in front of `key`, shared by all batch rows.
        softcap: cap * tanh(logit / cap) before the softmax.
        sinks: [H], one extra logit per head that takes mass but is no key.

    Returns:
        [B, T, H, width of values].

    Raises:
        HeadwiseError: More queries than keys.
    """
    if past is not None and past[0].shape[2] == 0:
        past = None
    length = key.shape[2] + (past[0].shape[2] if past else 0)
    if query.shape[2] > key.shape[2]:
        raise HeadwiseError(
            f"{query.shape[2]} queries for {key.shape[2]} new keys and {length} in all; queries are the last positions"
        )
    if softcap is not None or (mask is not None and (sinks is not None or past is not None)):
        out = _explicit(query, _joined(past, key, 0), _joined(past, value, 1), scaling, mask, softcap, sinks)
    elif mask is not None:
        out = _sdpa(query, key, value, scaling, mask)
    elif past is None and sinks is None and query.shape[2] in (1, key.shape[2]):
        out = _sdpa(query, key, value, scaling, None)
    else:
        out = _merged(query, key, value, scaling, past, sinks)
    return out.transpose(1, 2).contiguous()


def attend_held(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, mask: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention over keys of which every KV head holds its own: as `attend`, with a mask per KV head.

    Args:
        query: [B, H, T, d], rows that see all keys that the mask allows (one row needs no mask).
        key: [B, G, S, d].
        value: [B, G, S, width of values].
        scaling: Factor of query times key.
        mask: Bool [B or 1, 1 or G, T, S], or None.
        softcap: As in `attend`.
        sinks: As in `attend`.

    Returns:
        [B, T, H, width of values].
    """
    if query.shape[2] == 1 and softcap is None and sinks is None:
        return _one_row(query, key, value, scaling, mask).transpose(1, 2)
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return attend(query, key, value, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)


def _joined(past: tuple[Tensor, Tensor] | None, own: Tensor, which: int) -> Keys:
    return Keys((own,) if past is None else (past[which], own))


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    if mask is not None and query.shape[2] == 1 and mask.shape[1] == 1:
        return _one_row(query, key, value, scaling, mask)
    causal = mask is None and query.shape[2] > 1
    # A mask rules the flash kernel out on CUDA, and the other kernels want one KV head per query head.
    if mask is not None and query.shape[1] != key.shape[1]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


def _one_row(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """[B, H, 1, d] of one new token, mask [B or 1, 1 or G, 1, S]: the query heads of a group are rows of one call, so keys are read once."""
    folded = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, mask, scale=scaling)
    return out.flatten(1, 2)[:, :, None]


def _merged(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, past: tuple[Tensor, Tensor] | None, sinks: Tensor | None
) -> Tensor:
    """Flash attention over the past (no mask) and over the new block (causal), merged by log-sum-exp; then the sink's share."""
    new = query.shape[2]
    before = key.shape[2] - new
    out, lse = _with_lse(query, key[:, :, before:], value[:, :, before:], scaling, causal=True)
    if before:
        out, lse = _merge(out, lse, *_unmasked(query, key[:, :, :before], value[:, :, :before], scaling))
    if past is not None:
        out, lse = _merge(out, lse, *_unmasked(query, past[0], past[1], scaling))
    if sinks is not None:
        out = out * torch.sigmoid(lse - sinks.float().view(1, -1, 1)).unsqueeze(-1)
    return out.to(query.dtype)


def _unmasked(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention in which every query sees every key: grouped heads and rows of a shared past fold into query rows."""
    batch, heads, rows, dim = query.shape
    groups = key.shape[1]
    folded = query.reshape(batch, groups, -1, dim)
    if key.shape[0] == 1 and batch > 1:
        folded = folded.transpose(0, 1).reshape(1, groups, -1, dim)
        out, lse = _with_lse(folded, key, value, scaling, causal=False)
        out, lse = out.view(groups, batch, -1, value.shape[-1]).transpose(0, 1), lse.view(groups, batch, -1).transpose(0, 1)
    else:
        out, lse = _with_lse(folded, key, value, scaling, causal=False)
    return out.reshape(batch, heads, rows, -1), lse.reshape(batch, heads, rows)


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the union of two disjoint key sets from the softmax over each (float32)."""
    share = torch.sigmoid(lse - other_lse).unsqueeze(-1)
    return torch.lerp(other.float(), out.float(), share), torch.logaddexp(lse, other_lse)


def _with_lse(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp [B, H, T] float32 from the kernel of the device.

    The kernels' log-sum-exp carries no gradient and they want values as wide as keys; otherwise it is written out.
    """
    tracked = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if tracked or value.shape[-1] != query.shape[-1]:
        return _plain_with_lse(query, key, value, scaling, causal)
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
        return out, lse.float()
    if query.device.type == "cuda":
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        if query.dtype in (torch.float16, torch.bfloat16):
            found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scaling)
        else:
            found = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, None, True, 0.0, causal, scale=scaling
            )
        return found[0], found[1][:, :, : query.shape[2]].float()
    return _plain_with_lse(query, key, value, scaling, causal)


def _plain_with_lse(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> tuple[Tensor, Tensor]:
    logits = grouped_product(query.float() * scaling, key.float().transpose(-1, -2))
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril(), -torch.inf)
    return grouped_product(logits.softmax(dim=-1), value.float()).to(query.dtype), torch.logsumexp(logits, dim=-1)


def _explicit(
    query: Tensor, keys: Keys, values: Keys, scaling: float, mask: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Softmax over written-out logits, a few query rows at a time, in float32."""
    batch, heads, rows, _ = query.shape
    length = keys.length
    mask = _causal_mask(rows, length, query.device) if mask is None else mask
    step = max(1, EXPLICIT_LOGITS // (batch * heads * length))
    out = torch.empty((batch, heads, rows, values.segments[0].shape[-1]), dtype=query.dtype, device=query.device)
    for start in range(0, rows, step):
        seen = mask[..., start : start + step, :]
        visible = seen if seen.dtype == torch.bool else None
        everything = torch.ones((1, 1, seen.shape[-2], length), dtype=torch.bool, device=query.device)
        part = query[:, :, start : start + step]
        blocks = visible_logits(part, keys, scaling, everything if visible is None else visible, softcap, length)
        logits = torch.cat([block for _, block in blocks], dim=-1)
        if visible is None:
            logits = logits + seen.float()
        weights = softmax_rows(logits, sinks)
        out[:, :, start : start + step] = weighted(weights, values).to(query.dtype)
    return out


def _causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    query_position = torch.arange(length - rows, length, device=device).view(1, 1, rows, 1)
    return torch.arange(length, device=device) <= query_position


def softmax_rows(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax in which a row without visible keys gives zeros, and a sink takes its share.

    Args:
        logits: [B, H, R, S], -inf where a row may not look.
        sinks: [H], as in `attend`.

    Returns:
        Weights [B, H, R, S].
    """
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
    # A softmax over nothing but -inf is NaN, and so is its gradient: give such rows other logits and take the weights away again.
    nothing = logits.amax(dim=-1, keepdim=True).isneginf()
    return logits.masked_fill(nothing, 0).softmax(dim=-1).masked_fill(nothing, 0)


def weighted(weights: Tensor, values: Keys) -> Tensor:
    """Weights [B, H, R, S] times values of S positions: [B, H, R, width of values] float32."""
    parts, start = [], 0
    for segment in values.segments:
        stop = start + segment.shape[2]
        parts.append(grouped_product(weights[..., start:stop], segment.float()))
        start = stop
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
