"""CAFE from the paper's formulas: loops over heads and passages, and eager forward passes that are given an additive mask."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from headwise.models.model import as_model

SLOW = "slow_steering"


def shares(masses, lengths, doc_pool, eps=1e-12):
    """beta, eq. 1: [K][P]."""
    out = []
    for of_head in masses:
        masses_of = [m if n else 0.0 for m, n in zip(of_head, lengths, strict=True)]
        pooled = [m / n if doc_pool == "mean" and n else m for m, n in zip(masses_of, lengths, strict=True)]
        heard = sum(masses_of) >= eps and sum(pooled) > 0
        out.append([p / sum(pooled) if heard else 0.0 for p in pooled])
    return out


def votes(beta, most):
    """Eq. 4 and 7: union of the best passages of each head."""
    union = set()
    for of_head in beta:
        best = sorted(range(len(of_head)), key=lambda d: (-of_head[d], d))[:most]
        union |= {d for d in best if of_head[d] > 0}
    return sorted(union)


def relevance(beta):
    """Gamma, eq. 5."""
    return [sum(of_head[d] for of_head in beta) for d in range(len(beta[0]))]


def evidence(examples):
    """Eta / N, eq. 2. examples: (beta [L][H][P], gold passages); returns [L][H]."""
    layers, heads = len(examples[0][0]), len(examples[0][0][0])
    return [
        [sum(sum(beta[layer][h][d] for d in gold) for beta, gold in examples) / len(examples) for h in range(heads)]
        for layer in range(layers)
    ]


def bias_matrix(length, spans, rows, bias):
    """B, eq. 9: [T, T], `bias` where a row in [start, stop) looks at a span."""
    out = torch.zeros(length, length)
    for i in range(rows[0], min(rows[1], length)):
        for start, stop in spans:
            for j in range(start, stop):
                out[i, j] += bias
    return out


def visible(length, window, padding):
    """[T, T] bool: causal, inside the window, not padding (the row itself is always seen)."""
    out = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            out[i, j] = (window is None or i - j < window) and (j >= padding or i == j)
    return out


@torch.no_grad()
def logits_with_mask(model, ids, added, hard=None, padding=0):
    """Logits [T, V] of one row by transformers' eager attention with a 4-D float mask. added, hard [T, T]: to add, to keep seeing."""
    masks = {}
    for window in set(as_model(model).heads.windows.values()):
        seen = visible(len(ids), window, padding)
        kept = seen if hard is None else seen & hard
        kept = torch.where(kept.any(dim=-1, keepdim=True), kept, seen)
        masks[window] = added.masked_fill(~kept, torch.finfo(torch.float32).min)[None, None]
    kinds = getattr(model.config, "layer_types", None)
    mask = masks.get(None, next(iter(masks.values())))
    if kinds and "sliding_attention" in kinds and "full_attention" in kinds:
        mask = {"full_attention": masks[None], "sliding_attention": next(m for w, m in masks.items() if w is not None)}
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        positions = (torch.arange(len(ids)) - padding).clamp(min=0)
        return model(torch.tensor([ids]), attention_mask=mask, position_ids=positions[None], use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def logits_of_heads(model, ids, heads, added, mask=None):
    """Logits [B, T, V] by written-out attention in which only `heads` ((layer, head) pairs) get `added` [T, T] on their logits."""
    layer_of = {module: layer for layer, module in as_model(model).modules.items()}

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, s_aux=None, **_):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        group = query.shape[1] // key.shape[1]
        outs = []
        for h in range(query.shape[1]):
            logits = query[:, h] @ key[:, h // group].transpose(-1, -2) * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits = logits + attention_mask[:, 0]
            if (layer_of[module], h) in heads:
                logits = logits + added
            if s_aux is not None:
                logits = torch.cat([logits, s_aux[h].expand(*logits.shape[:-1], 1)], dim=-1)
            outs.append(logits.softmax(dim=-1)[..., : key.shape[2]] @ value[:, h // group])
        return torch.stack(outs, dim=2), None

    AttentionInterface.register(SLOW, attention)
    AttentionMaskInterface.register(SLOW, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(SLOW)
    try:
        return model(ids, attention_mask=mask, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)
