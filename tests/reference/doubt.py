"""Unwanted uncertainty from the method card, slowly: hits, the four cases, set expressions, Wilson's interval, and margins by whole passes."""

import math
from fractions import Fraction

import torch


def hit(weights, spans, top, sink=False):
    """Card 3.4: whether one of the `top` best positions of a row lies in a span; equal weights go to the earlier, position 0 counts with `sink`."""
    places = [place for place in range(len(weights)) if sink or place > 0]
    best = sorted(places, key=lambda place: (-weights[place], place))[:top]
    return any(start <= place < stop for place in best for start, stop in spans)


def cases(leave, keep, flipped):
    """Card 3.4: case1 ... case4 and misleading = case1 - case3, as lists of lists of [layer][head]; None where a share is of nothing."""

    def share(found, state, layer, head):
        own = [rows[layer][head] for rows, flip in zip(found, flipped, strict=True) if flip is state]
        return Fraction(sum(own), len(own)) if own else None

    layers, heads = len(leave[0]), len(leave[0][0])
    out = {}
    for name, found, state in (("case1", leave, True), ("case2", keep, True), ("case3", leave, False), ("case4", keep, False)):
        out[name] = [[share(found, state, layer, head) for head in range(heads)] for layer in range(layers)]
    out["misleading"] = [
        [None if one is None or three is None else one - three for one, three in zip(*rows, strict=True)]
        for rows in zip(out["case1"], out["case3"], strict=True)
    ]
    return out


def value_of(tree, tables, head, threshold):
    """An expression for one head: a name, or (operator, left, right). With a threshold a value below it is outside of the set and counts as 0."""
    if isinstance(tree, str):
        value = tables[tree][head]
        return value if threshold is None or value >= threshold else 0.0
    sign, left, right = tree
    a, b = value_of(left, tables, head, threshold), value_of(right, tables, head, threshold)
    if sign == "|":
        return max(a, b)
    if sign == "&":
        return min(a, b)
    if threshold is None:
        return a - b
    return 0.0 if b >= threshold else a


def written(tree):
    """The expression as text, every operation in brackets."""
    if isinstance(tree, str):
        return tree
    sign, left, right = tree
    return f"({written(left)} {sign} {written(right)})"


@torch.no_grad()
def log_odds(hf, ids, keep, leave):
    """Log-odds of whole replies behind ids: one pass of the plain model over the whole dialogue per reply, no cache, no shared past."""

    def logprob(reply):
        logits = hf(torch.tensor([[*ids, *reply]], device=hf.device), use_cache=False).logits[0].double().log_softmax(dim=-1)
        return sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(reply))

    sides = [math.log(sum(math.exp(logprob(reply)) for reply in side)) for side in (keep, leave)]
    return sides[0] - sides[1]


@torch.no_grad()
def greedy(hf, ids, ends, limit):
    """The greedy reply, one whole pass per token."""
    said = []
    while len(said) < limit:
        said.append(int(hf(torch.tensor([[*ids, *said]], device=hf.device), use_cache=False).logits[0, -1].argmax()))
        if ends(said):
            break
    return tuple(said)


def wilson(count, total, z=1.959964):
    """Wilson's interval as the two shares p at which the observed one lies z standard errors away, found by halving."""

    def off(p):
        return abs(count / total - p) - z * math.sqrt(p * (1 - p) / total)

    def solve(near, far):
        for _ in range(200):
            middle = (near + far) / 2
            near, far = (middle, far) if off(middle) <= 0 else (near, middle)
        return near

    share = count / total
    return (0.0 if count == 0 else solve(share, 0.0)), (1.0 if count == total else solve(share, 1.0))
