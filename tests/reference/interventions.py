"""Function vectors, forced copying and patching from the method card: written-out attention, one head and one row after the other."""

import math

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from headwise.models.model import as_model

SLOW = "slow_interventions"


def plain_weights(scores):
    """Softmax of a list, -inf where nothing may be seen."""
    highest = max(scores)
    powers = [math.exp(s - highest) for s in scores]
    return [power / sum(powers) for power in powers]


def two_step_scores(scores, needle, beta, factor):
    """Card 3.7: every needle score rises by beta times the highest score (if above 0); those above 0 are multiplied by the factor."""
    highest = max(scores)
    out = list(scores)
    for j in needle:
        out[j] = scores[j] + beta * max(0.0, highest)
        if out[j] > 0:
            out[j] = factor * out[j]
    return out


def mixed_weights(weights, scores, needle, weight, temperature):
    """Card 3.7: A' = (1 - w) A + w softmax over the needle of tau s."""
    seen = [j for j in needle if scores[j] > -math.inf]
    if not seen:
        return list(weights)
    pulled = plain_weights([temperature * scores[j] for j in seen])
    out = [(1 - weight) * a for a in weights]
    for j, share in zip(seen, pulled, strict=True):
        out[j] += weight * share
    return out


def forced(scores, sink, needle, how, beta, factor, weight, temperature):
    """Weights of one head and row. sink: its sink logit, or None."""
    if how == "two_step":
        scores = two_step_scores(scores, needle, beta, factor)
    extra = [] if sink is None else [sink]
    weights = plain_weights([*scores, *extra])[: len(scores)]
    return mixed_weights(weights, scores, needle, weight, temperature) if how == "mix" else weights


@torch.no_grad()
def logits_with(model, ids, mask=None, weights_of=None, output_of=None):
    """Logits [B, T, V] of a pass in which attention is written out.

    weights_of(layer, row, head, place, scores, sink) gives the weights of one row, output_of(layer, row, head, place, output) its output; None from
    either: as it is.
    """
    layer_of = {module: layer for layer, module in as_model(model).modules.items()}

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, s_aux=None, **_):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        group, layer = query.shape[1] // key.shape[1], layer_of[module]
        out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        for h in range(query.shape[1]):
            scores = query[:, h] @ key[:, h // group].transpose(-1, -2) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(attention_mask[:, 0] < -1e30, -torch.inf)
            sink = None if s_aux is None else float(s_aux[h])
            for b in range(len(query)):
                for t in range(query.shape[2]):
                    row = scores[b, t]
                    if bool(row.isneginf().all()):
                        continue
                    weights = weights_of and weights_of(layer, b, h, t, row.tolist(), sink)
                    if weights is None:
                        extra = row if sink is None else torch.cat([row, row.new_tensor([sink])])
                        weights = extra.softmax(dim=-1)[: len(row)]
                    z = torch.as_tensor(weights, dtype=value.dtype) @ value[b, h // group]
                    changed = output_of and output_of(layer, b, h, t, z)
                    out[b, t, h] = z if changed is None else changed
        return out, None

    AttentionInterface.register(SLOW, attention)
    AttentionMaskInterface.register(SLOW, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(SLOW)
    try:
        return model(ids, attention_mask=mask, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)
