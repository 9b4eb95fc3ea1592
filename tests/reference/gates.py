"""DuoAttention's gates written from the paper's formulas: loops, full masks, a doubled batch; and layer choices by trying all of them."""

import copy
import itertools

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from headwise.attention.plan import headwise_mask
from headwise.models.model import as_model


def lambda_mask(length, sinks, recent):
    """[T, T]: key i is visible to query t iff i <= t and (i < sinks or t - i < recent)."""
    return torch.tensor([[i <= t and (i < sinks or t - i < recent) for i in range(length)] for t in range(length)])


def plain(query, key, value, visible, scaling, softcap, s_aux):
    """Softmax attention [B, T, H, d] over a full matrix."""
    each = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(each, dim=1).transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible, -torch.inf)
    if s_aux is not None:
        logits = torch.cat([logits, s_aux.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)], dim=-1)
    weights = logits.softmax(dim=-1)[..., : key.shape[2]]
    return (weights @ value.repeat_interleave(each, dim=1)).transpose(1, 2)


def gated_attention(hf, gates, sinks, recent, doubled):
    """An attention function. doubled: the first half of the batch is the teacher, and the second takes its full output from there."""
    model = as_model(hf)
    layers = {id(module): layer for layer, module in model.modules.items()}

    def attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **_):
        layer, length = layers[id(module)], query.shape[2]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = lambda_mask(length, length, 1) if mask is None else mask
        full = plain(query, key, value, causal, scaling, softcap, s_aux)
        if model.heads.windows[layer] is not None:
            return full, None
        stream = plain(query, key, value, lambda_mask(length, sinks, recent), scaling, softcap, s_aux)
        out = torch.zeros_like(full)
        half = len(query) // 2 if doubled else 0
        for row in range(len(query)):
            for head in range(query.shape[1]):
                gate = gates[layer, head // (query.shape[1] // model.heads.kv_heads)]
                if row < half:
                    out[row, :, head] = full[row, :, head]
                else:
                    out[row, :, head] = gate * full[row - half, :, head] + (1 - gate) * stream[row, :, head]
        return out, None

    return attention


def search(model, ids, places, *, steps, rate, sinks, recent, weight):
    """(gates after `steps` of Adam written out, their mean over the steps, losses) from doubled batches. ids [1, T]; places: rows to compare."""
    twin, layout = copy.deepcopy(model).requires_grad_(False), as_model(model)
    gates = torch.ones(layout.heads.shape[0], layout.heads.kv_heads, requires_grad=True)
    first, second, total = (torch.zeros_like(gates) for _ in range(3))
    losses = []
    AttentionInterface.register("slow_gates", gated_attention(twin, gates, sinks, recent, doubled=True))
    AttentionMaskInterface.register("slow_gates", headwise_mask)
    twin.set_attn_implementation("slow_gates")
    for step in range(steps):
        with torch.no_grad():
            gates.copy_(gates.clamp(0, 1))
            total += gates
        hidden = twin.base_model(input_ids=torch.cat([ids, ids]), use_cache=False).last_hidden_state[:, places]
        parts = ((hidden[1] - hidden[0]) ** 2).mean(), gates.abs().mean()
        slope = torch.autograd.grad(parts[0] + weight * parts[1], gates)[0]
        with torch.no_grad():
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            sure, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            gates -= rate * factor(step, steps) * sure / (spread.sqrt() + 1e-8)
        losses.append([part.item() for part in parts])
    return gates.detach(), total / steps, losses


def loss(student, teacher, gates):
    """(distillation, mean |gate|) of rows [n][d] and gates [L][H]."""
    distances = [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s) for s, t in zip(student, teacher, strict=True)]
    return sum(distances) / len(distances), sum(abs(g) for row in gates for g in row) / sum(map(len, gates))


def group_penalty(gates):
    """sqrt(H) x sum of the rows' lengths, over all gates."""
    width = len(gates[0])
    return width**0.5 * sum(sum(g * g for g in row) ** 0.5 for row in gates) / (width * len(gates))


def chosen(gates, count, *ties):
    """[(layer, head)] of the `count` highest clamped gates."""
    places = list(itertools.product(range(len(gates)), range(len(gates[0]))))
    order = sorted(
        places,
        key=lambda p: (-min(max(gates[p[0]][p[1]], 0), 1), -gates[p[0]][p[1]], *(-t[p[0]][p[1]] for t in ties), p),
    )
    return set(order[:count])


def heads_changed(kept_heads, layers):
    """How many heads change their type if exactly `layers` become retrieval layers."""
    return sum(kept != (layer in layers) for layer, row in enumerate(kept_heads) for kept in row)


def fewest_changed(kept_heads, count):
    """The least of all choices of `count` layers."""
    return min(heads_changed(kept_heads, set(c)) for c in itertools.combinations(range(len(kept_heads)), count))


def factor(step, steps):
    """Card: min(1, max((t + 1) / 400, 0.1), max((2000 - t) / 400, 0.1)) for 2000 steps."""
    return min(1, max((step + 1) / (steps / 5), 0.1), max((steps - step) / (steps / 5), 0.1))
