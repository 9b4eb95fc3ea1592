"""Row statistics by slow loops over given attention weights."""

import torch


def slow_row_statistics(weights, spans):
    """weights [B, H, R, S] -> argmax [B, H, R] (lowest index wins), mass [B, H, R, N]."""
    batch, heads, rows, keys = weights.shape
    argmax = torch.empty(batch, heads, rows, dtype=torch.int64)
    mass = torch.zeros(batch, heads, rows, len(spans))
    for b in range(batch):
        for h in range(heads):
            for r in range(rows):
                row = weights[b, h, r].tolist()
                argmax[b, h, r] = max(range(keys), key=lambda i: (row[i], -i))
                for n, (start, stop) in enumerate(spans):
                    mass[b, h, r, n] = sum(row[start:stop])
    return argmax, mass
