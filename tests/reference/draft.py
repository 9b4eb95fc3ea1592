"""A draft head, token by token, from its definition (docs/methods/specontext.md): what the distilled chooser gives for the newest token."""

import cmath
import math

import torch


def normed(x, weight, eps):
    return x / math.sqrt(float((x * x).mean()) + eps) * weight


def turned(x, position, turning, scale=1.0):
    """Pairs (i, i + d / 2) as complex numbers."""
    half = len(x) // 2
    out = [complex(float(x[i]), float(x[i + half])) * cmath.exp(1j * position * float(turning[i])) * scale for i in range(half)]
    return torch.tensor([number.real for number in out] + [number.imag for number in out])


def scores(head, embeddings, hidden, turning, scale=1.0, level="head"):
    """[G or 1, T] of the last token.

    embeddings: [T, w]; hidden: layer -> [T, w], what enters it; turning: [d / 2].
    """
    shape, state = head.shape, head.state_dict()
    rows = []
    for j, embedding in enumerate(embeddings):
        x = normed(embedding, state["embedding_norm.weight"], shape.eps)
        if shape.taps:
            feature = (
                torch.cat([hidden[layer][j - 1] for layer in shape.taps]) if j else torch.zeros(len(shape.taps) * shape.width)
            )
            feature = state["fuse.weight"] @ feature if "fuse.weight" in state else feature
            x = torch.cat([x, normed(feature, state["feature_norm.weight"], shape.eps)])
        rows.append(x)
    keys, queries = (state[f"{name}.weight"] for name in ("key", "query"))
    each, last = shape.heads // shape.kv_heads, len(rows) - 1
    found = []
    for h in range(shape.heads):
        own = slice(h // each * shape.head_dim, (h // each + 1) * shape.head_dim)
        query = turned(queries[h * shape.head_dim : (h + 1) * shape.head_dim] @ rows[last], last, turning, scale)
        logits = [float(query @ turned(keys[own] @ x, j, turning, scale)) / math.sqrt(shape.head_dim) for j, x in enumerate(rows)]
        found.append(torch.tensor(logits).softmax(dim=0))
    groups = [torch.stack(found[g * each : (g + 1) * each]).amax(dim=0) for g in range(shape.kv_heads)]
    return torch.stack(groups) if level == "head" else torch.stack(groups).amax(dim=0)[None]


def chained(query, keys, values):
    """Attention of step i, position by position: [H, T, d]. query [H, T, d]; keys, values: per step [G, T, d]."""
    heads, length, width = query.shape
    each, last = heads // keys[0].shape[0], len(keys) - 1
    out = torch.zeros(heads, length, values[0].shape[2])
    for h in range(heads):
        for t in range(length):
            places = [(0, j) for j in range(t - last + 1)]
            places += [(m, t - (last - m)) for m in range(1, last + 1)]
            logits, rows = [], []
            for m, j in places:
                key = keys[m][h // each, j] if j >= 0 else torch.zeros(width)
                value = values[m][h // each, j] if j >= 0 else torch.zeros(values[0].shape[2])
                logits.append(float(query[h, t] @ key) / math.sqrt(width))
                rows.append(value)
            for weight, value in zip(torch.tensor(logits).softmax(dim=0), rows, strict=True):
                out[h, t] += weight * value
    return out
