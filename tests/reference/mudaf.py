"""MuDAF from its method card: loops over heads, passages and tokens, in plain numbers and float64."""

import math

import torch

from headwise.models.model import as_model


def measures(masses, gold, tau):
    """Section 3.1 of one head on one question. masses [P], gold [P]; returns by name."""
    count = sum(gold)
    wanted = {i for i, good in enumerate(gold) if good}
    picked = {i for i, mass in enumerate(masses) if mass > tau}
    precision = len(picked & wanted) / len(picked) if picked else 0.0
    recall = len(picked & wanted) / count
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    strongest = sorted(picked, key=lambda i: (-masses[i], i))[:count]
    order = sorted(range(len(masses)), key=lambda i: (-masses[i], gold[i]))
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if gold[i]:
            hits += 1
            total += hits / rank
    return {"precision": precision, "recall": recall, "f1": f1, "em": float(set(strongest) == wanted), "ap": total / count}


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def mean_key(keys):
    """[tokens][d] -> [d]."""
    return [sum(float(key[i]) for key in keys) / len(keys) for i in range(len(keys[0]))]


def log_sum_exp(numbers):
    top = max(numbers)
    return top + math.log(sum(math.exp(n - top) for n in numbers))


def info_nce(similarities, gold):
    """Section 3.3, one item per gold passage, the other gold ones left out; their mean."""
    losses = []
    for i, good in enumerate(gold):
        if good:
            others = [s for s, g in zip(similarities, gold, strict=True) if not g]
            losses.append(log_sum_exp([similarities[i], *others]) - similarities[i])
    return sum(losses) / len(losses)


def mudaf(heads, group, question, passages, gold, *, temperature=0.05, sim="per_head", pool="mean", softcap=None):
    """One question. question: layer -> (query [H][d] of the row that asks, scaling); passages: per passage layer -> keys [G][tokens][d]."""
    heads = sorted(heads)
    if sim == "concat":
        whole = [x for layer, h in heads for x in question[layer][0][h].tolist()]
        keys = [[x for layer, h in heads for x in mean_key(one[layer][h // group].tolist())] for one in passages]
        return info_nce([cosine(whole, key) / temperature for key in keys], gold)
    losses = []
    for layer, h in heads:
        query, scaling = question[layer][0][h].tolist(), question[layer][1]
        similarities = []
        for one in passages:
            keys = one[layer][h // group].tolist()
            if pool == "mean":
                similarities.append(cosine(query, mean_key(keys)) / temperature)
            else:
                logits = [dot(query, key) * scaling for key in keys]
                logits = [softcap * math.tanh(logit / softcap) for logit in logits] if softcap else logits
                similarities.append(log_sum_exp(logits))
        losses.append(info_nce(similarities, gold))
    return sum(losses) / len(losses)


@torch.no_grad()
def attention(model, ids):
    """Layer -> [H, T, T] float64 weights of a plain eager pass; layers without attention are missing."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        weights = model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(before)
    layers = as_model(model).heads.shape[0]
    places = range(layers) if len(weights) == layers else sorted(as_model(model).modules)
    return {layer: one[0].double() for layer, one in zip(places, weights, strict=True) if one is not None}


def ranking(weights, heads, rows, passages, gold, temperature):
    """QRRanker's loss of one question. weights: layer -> [H, T, T]."""
    masses = []
    for start, stop in passages:
        total = 0.0
        for layer, head in heads:
            for t in range(*rows):
                total += float(weights[layer][head][t][start:stop].sum()) / (rows[1] - rows[0])
        masses.append(total)
    low, high = min(masses), max(masses)
    return masses, info_nce([(m - low) / (high - low) / temperature for m in masses], gold)
