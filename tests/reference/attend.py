"""Softmax attention by slow loops, straight from the formula. In float64, and differentiable, so it also gives the gradient."""

import torch


def slow_attend(query, key, value, *, scaling, mask=None, past=None, softcap=None, sinks=None):
    """query [B, H, T, d], key and value [B, G, S, d], past [1, G, P, d] twice -> [B, T, H, d] float64."""
    batch, heads, rows, _ = query.shape
    group = heads // key.shape[1]
    outputs = []
    for b in range(batch):
        for t in range(rows):
            for h in range(heads):
                keys, values = key[b, h // group], value[b, h // group]
                if past is not None:
                    keys = torch.cat([past[0][0, h // group], keys])
                    values = torch.cat([past[1][0, h // group], values])
                outputs.append(_row(b, h, t, query, keys.double(), values.double(), scaling, mask, softcap, sinks))
    return torch.stack(outputs).view(batch, rows, heads, value.shape[-1])


def _row(b, h, t, query, keys, values, scaling, mask, softcap, sinks):
    position = len(keys) - query.shape[2] + t  # the queries are the last positions
    logits, seen = [], []
    for s in range(len(keys)):
        logit = scaling * (query[b, h, t].double() * keys[s]).sum()
        if softcap is not None:
            logit = softcap * torch.tanh(logit / softcap)
        if mask is None:
            visible = s <= position
        else:
            entry = mask[b if mask.shape[0] > 1 else 0, h if mask.shape[1] > 1 else 0, t, s]
            visible = bool(entry) if mask.dtype == torch.bool else entry.item() != -float("inf")
            logit = logit if mask.dtype == torch.bool else logit + entry.double()
        if visible:
            logits.append(logit)
            seen.append(s)
    if not seen:
        return torch.zeros_like(values[0])
    if sinks is not None:
        logits.append(sinks[h].double())
    weights = torch.softmax(torch.stack(logits), dim=0)
    return sum(weights[i] * values[s] for i, s in enumerate(seen))
