"""Contrastive decoding from the papers: two separate full passes without a cache per step, and the formulas in plain Python numbers."""

import math

import torch

from tests.reference.interventions import logits_with, plain_weights


def probabilities(logits):
    """Softmax of a list of logits."""
    return plain_weights([float(x) for x in logits])


def nats(p):
    """Shannon entropy."""
    return -sum(x * math.log(x) for x in p if x > 0)


def bits_apart(p, q):
    """Jensen-Shannon divergence: the mean of both Kullback-Leibler divergences from the mixture, in bits."""
    found = 0.0
    for one in (p, q):
        for x, m in zip(one, [(a + b) / 2 for a, b in zip(p, q, strict=True)], strict=True):
            if x > 0:
                found += x * math.log2(x / m) / 2
    return found


def weight_of(p, q, combine, alpha, cap=None):
    """The weight a of one step; p: with, q: without."""
    if combine == "fixed":  # CAD (2305.14739), RHIO 3.3
        return alpha
    if combine == "entropy":  # DeCoRe (2410.18860)
        return min(alpha * nats(p), math.inf if cap is None else cap)
    if combine == "adaptive":  # AdaCAD (2409.07394)
        return alpha * bits_apart(p, q)
    if p.index(max(p)) == q.index(max(q)):  # routed: a rule of ours
        return 0.0
    return alpha if nats(p) <= nats(q) else -nats(p) / (nats(p) + nats(q))


def contrasted(positive, negative, combine, alpha, plausibility=None, cap=None):
    """(probabilities of the next token, a) from two rows of logits: p+ ** (1 + a) / p- ** a, normalised."""
    p, q = probabilities(positive), probabilities(negative)
    a = weight_of(p, q, combine, alpha, cap)
    logs = [(1 + a) * math.log(x) - a * math.log(y) for x, y in zip(p, q, strict=True)]
    if plausibility is not None:
        logs = [s if x >= plausibility * max(p) * (1 - 1e-6) else -math.inf for s, x in zip(logs, p, strict=True)]
    return plain_weights(logs), a


def last_logits(hf, ids, heads=(), mode="zero", start=0):
    """[V] behind ids, in one pass without a cache; heads (layer, head) are taken away from position `start` on."""

    def output_of(layer, row, head, place, output):
        return torch.zeros_like(output) if mode == "zero" and (layer, head) in heads and place >= start else None

    def weights_of(layer, row, head, place, scores, sink):
        if mode != "uniform" or (layer, head) not in heads or place < start:
            return None
        level = [-math.inf if score == -math.inf else 0.0 for score in scores]  # a query of zeros
        return plain_weights([*level, *([] if sink is None else [sink])])[: len(scores)]

    return logits_with(hf, torch.tensor([ids]), weights_of=weights_of, output_of=output_of)[0, -1]


def pairs(hf, ids, negative, answer, weaker=None):
    """[(positive [V], negative [V])] behind the prompt and each token of the answer.

    negative: ids of another prompt, or (heads, mode, scope), or None for a weaker model.
    """
    found = []
    for count in range(len(answer) + 1):
        said = list(answer[:count])
        first = last_logits(hf, [*ids, *said])
        if weaker is not None:
            second = last_logits(weaker, [*ids, *said])
        elif isinstance(negative, list):
            second = last_logits(hf, [*negative, *said])
        else:
            heads, mode, scope = negative
            second = last_logits(hf, [*ids, *said], heads, mode, len(ids) - 1 if scope == "answer" else 0)
        found.append((first, second))
    return found


def generate(hf, ids, negative, count, combine, alpha, plausibility=None, cap=None, weaker=None):
    """(tokens, weights) of a greedy answer of `count` tokens."""
    said, weights = [], []
    for _ in range(count):
        first, second = pairs(hf, ids, negative, said, weaker)[-1]
        p, a = contrasted(first, second, combine, alpha, plausibility, cap)
        said.append(p.index(max(p)))
        weights.append(a)
    return said, weights
