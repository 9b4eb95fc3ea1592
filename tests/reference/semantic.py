"""CompressKV (Lin et al. 2025) by slow loops: the semantic score, the positions that a layer keeps, the errors of layers, budgets."""

import math

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from tests.helpers import with_cache


def slow_semantic(masses, emitted, answer_ids):
    """One head. masses[t][j]: weight of the row that predicts emitted[t] on the j-th token of the span. (score, number of matching steps)."""
    score, steps = 0.0, 0
    for weights, token in zip(masses, emitted, strict=True):
        if token in answer_ids:
            steps += 1
            for weight in weights:
                score += weight
    return score, steps


def slow_weights(query, keys, scaling, softcap=None, sink=None):
    """Softmax weights (a list) of one query [d] over keys [n, d], in float64."""
    logits = [float(key.double() @ query.double()) * scaling for key in keys]
    if softcap is not None:
        logits = [softcap * math.tanh(logit / softcap) for logit in logits]
    highest = max(logits if sink is None else [*logits, float(sink)])
    parts = [math.exp(logit - highest) for logit in logits]
    total = sum(parts) + (0 if sink is None else math.exp(float(sink) - highest))
    return [part / total for part in parts]


def slow_scores(query, keys, heads, window, kernel, scaling, group_of, softcap=None, sinks=None):
    """Mean over `heads` of the pooled attention that the last `window` rows pay to each position in front of them.

    query [H, S, d], keys [G, S, d]; group_of(head): its KV head. Beyond both ends of the pool stand zeros, which count.
    """
    length = query.shape[1]
    total = [0.0] * (length - window)
    for head in heads:
        summed = [0.0] * (length - window)
        for row in range(length - window, length):
            sink = None if sinks is None else sinks[head]
            weights = slow_weights(query[head, row], keys[group_of(head), : row + 1], scaling, softcap, sink)
            for position in range(length - window):
                summed[position] += weights[position]
        for position in range(length - window):
            around = [summed[i] for i in range(position - kernel // 2, position + kernel // 2 + 1) if 0 <= i < length - window]
            total[position] += sum(around) / kernel / len(heads)
    return total


def slow_kept(scores, length, budget, sinks, window):
    """Positions kept: the first `sinks`, the last `window`, and the best others; ascending. scores: of positions before the window."""
    if budget >= length:
        return list(range(length))
    kept = [i for i in range(length) if i < sinks or i >= length - window]
    rest = sorted((i for i in range(length) if i not in kept), key=lambda i: -scores[i])
    return sorted(kept + rest[: budget - len(kept)])


def watched(model, passes):
    """What the attention of every layer got in each of the passes: list of {layer: (query, keys, values, scaling, softcap, sinks)}.

    passes(model): runs them, with a plain model and its own mask.
    """
    calls = []

    def attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **_):
        if not calls or module.layer_idx in calls[-1]:
            calls.append({})
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        sinks = None if s_aux is None else s_aux.detach()
        calls[-1][module.layer_idx] = (query[0], key[0], value[0], scaling, softcap, sinks)
        each = query.shape[1] // key.shape[1]
        logits = query @ key.repeat_interleave(each, dim=1).transpose(-1, -2) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~mask, -torch.inf)
        if s_aux is not None:
            logits = torch.cat([logits, s_aux.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)], dim=-1)
        weights = logits.softmax(dim=-1)[..., : key.shape[2]]
        return (weights @ value.repeat_interleave(each, dim=1)).transpose(1, 2).contiguous(), None

    AttentionInterface.register("watched_reference", attention)
    AttentionMaskInterface.register(
        "watched_reference", lambda **options: sdpa_mask(**{**options, "allow_is_causal_skip": False})
    )
    before = model.config._attn_implementation
    model.set_attn_implementation("watched_reference")
    try:
        with torch.no_grad():
            passes(model)
    finally:
        model.set_attn_implementation(before)
    return calls


def slow_layer_errors(model, prompt, answer, projections, kept_of, epsilon=1e-6):
    """Layer -> error: the answer is decoded token by token, and at every step each layer attends twice, to all and to what is kept.

    projections: layer -> (weight [hidden, H * d], bias or None). kept_of(layer, call of the prompt): positions per KV head.
    """

    def passes(model):
        cache = DynamicCache(config=model.config)
        for ids in ([prompt], *[[[token]] for token in answer]):
            model(input_ids=torch.tensor(ids), **with_cache(cache), use_cache=True)

    first, *steps = watched(model, passes)
    kept = {layer: kept_of(layer, first[layer]) for layer in projections}
    errors = dict.fromkeys(projections, 0.0)
    for step in steps:
        for layer, (weight, bias) in projections.items():
            query, keys, values, scaling, softcap, sinks = step[layer]
            each, outputs = len(query) // len(keys), []
            for all_of_them in (True, False):
                heads = []
                for h in range(len(query)):
                    g, sink = h // each, None if sinks is None else sinks[h]
                    seen = range(keys.shape[1]) if all_of_them else [*kept[layer][g], *range(len(prompt), keys.shape[1])]
                    weights = slow_weights(query[h, 0], keys[g, list(seen)], scaling, softcap, sink)
                    heads.append(sum(w * values[g, i].double() for w, i in zip(weights, seen, strict=True)))
                outputs.append(linear(torch.cat(heads), weight.double(), None if bias is None else bias.double()))
            errors[layer] += float((outputs[1] - outputs[0]).norm() / (outputs[0].norm() + epsilon))
    return errors


def slow_budgets(errors, budget, least, factor=3):
    """The paper's algorithm 1: counts per layer. Repairs the rounding layer by layer, the strongest (or weakest) first, round and round."""
    layers, most = len(errors), factor * budget
    shares = [error / sum(errors) for error in errors]
    rest = layers * budget - layers * least
    counts = [min(max(least + round(share * rest), least), most) for share in shares]
    missing = layers * budget - sum(counts)
    while missing:
        changed = False
        for layer in sorted(range(layers), key=lambda i: -shares[i] if missing > 0 else shares[i]):
            if missing > 0 and counts[layer] < most:
                counts[layer], missing, changed = counts[layer] + 1, missing - 1, True
            elif missing < 0 and counts[layer] > least:
                counts[layer], missing, changed = counts[layer] - 1, missing + 1, True
            if not missing:
                break
        if not changed:
            break
    return counts
