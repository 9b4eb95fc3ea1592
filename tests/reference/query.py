"""Slow query scores from the papers' formulas: one full forward pass with eager attention per query, loops over heads and tokens."""

import math

import torch

from headwise.models.model import as_model


@torch.no_grad()
def attention_to_prefix(model, prefix, suffix, rows):
    """[L][H] mean attention from the suffix rows to each prefix token, by a plain eager pass; None for layers without attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model(torch.tensor([[*prefix, *suffix]]), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    table = [None] * as_model(model).heads.shape[0]
    places = range(len(table)) if len(out.attentions) == len(table) else sorted(as_model(model).modules)
    for layer, weights in zip(places, out.attentions, strict=True):  # weights [1, H, T, T]
        if weights is not None:
            rows_of = [
                [weights[0, h, len(prefix) + t, : len(prefix)].double() for t in range(*rows)] for h in range(weights.shape[1])
            ]
            table[layer] = [sum(of_head) / len(of_head) for of_head in rows_of]
    return table


def official_passage(values, start, stop):
    """The released rule: drop tokens at or below mean - 2 std of the passage, sum the others; NaN comparisons drop everything."""
    tokens = [float(v) for v in values[start:stop]]
    mean = sum(tokens) / len(tokens)
    if len(tokens) == 1:
        return 0.0
    std = math.sqrt(sum((t - mean) ** 2 for t in tokens) / (len(tokens) - 1))
    return sum(t for t in tokens if t > mean - 2 * std)


def official_scores(model, prefix, spans, query, null, heads):
    """Released procedure (QRHead, sec. 3.3 of our card): sum over heads first, calibrated, trimmed. query, null: (ids, rows)."""
    asked = attention_to_prefix(model, prefix, *query)
    empty = attention_to_prefix(model, prefix, *null)
    total = [0.0] * len(prefix)
    for layer, head in heads:
        for j in range(len(prefix)):
            total[j] += float(asked[layer][head][j]) - float(empty[layer][head][j])
    return [official_passage(total, *span) for span in spans]


def ndcg(values, gold, cut=10):
    """nDCG with binary gains; among equal values those that are not gold come first."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], gold[i]))
    gain = sum(1 / math.log2(rank + 2) for rank, i in enumerate(order[:cut]) if gold[i])
    best = sum(1 / math.log2(rank + 2) for rank in range(min(cut, sum(gold))))
    return gain / best


def mrr(values, gold):
    order = sorted(range(len(values)), key=lambda i: (-values[i], gold[i]))
    return next(1 / (rank + 1) for rank, i in enumerate(order) if gold[i])


def contrastive(values, gold, temperature):
    total = sum(abs(v) for v in values)
    shares = [v / total if total else 0.0 for v in values]
    terms = []
    for i, good in enumerate(gold):
        if good:
            others = sum(math.exp(shares[j] / temperature) for j, g in enumerate(gold) if not g)
            mine = math.exp(shares[i] / temperature)
            terms.append(mine / (mine + others))
    return sum(terms) / len(terms)
