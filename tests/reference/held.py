"""Row statistics over what a head may see, by slow loops in double precision."""

import math

import torch


def slow_statistics(query, key, seen, first, spans, scaling, softcap=None, sinks=None):
    """query [B, H, R, d], key [B, G, S, d], seen [B or 1, H or 1, R, S] bool; key i stands at position first + i.

    Returns argmax, lse [B, H, R], mass [B, H, R, N], and by how much the strongest logit is ahead of the next one [B, H, R].
    """
    batch, heads, rows, _ = query.shape
    group = heads // key.shape[1]
    argmax = torch.full((batch, heads, rows), -1)
    lse, mass = torch.full((batch, heads, rows), -math.inf), torch.zeros(batch, heads, rows, len(spans))
    ahead = torch.full((batch, heads, rows), math.inf)
    seen = seen.expand(batch, heads, rows, key.shape[2])
    for b in range(batch):
        for h in range(heads):
            for r in range(rows):
                logits = {}
                for i in seen[b, h, r].nonzero().flatten().tolist():
                    logit = float(query[b, h, r].double() @ key[b, h // group, i].double()) * scaling
                    logits[first + i] = softcap * math.tanh(logit / softcap) if softcap else logit
                total = sum(math.exp(x) for x in logits.values()) + (math.exp(float(sinks[h])) if sinks is not None else 0)
                argmax[b, h, r] = max(logits, key=lambda i: (logits[i], -i))
                lse[b, h, r] = math.log(total)
                first_two = sorted(logits.values())[-2:]
                ahead[b, h, r] = first_two[-1] - first_two[0] if len(first_two) == 2 else math.inf
                for n, (start, stop) in enumerate(spans):
                    mass[b, h, r, n] = sum(math.exp(x) for i, x in logits.items() if start <= i < stop) / total
    return argmax, lse, mass, ahead
