"""Attention of heads that do not see some positions, from scratch: these columns are left out, one head and one row after the other."""

from tests.reference.interventions import logits_with, plain_weights


def weights_without(scores, sink, hidden):
    """Softmax over the columns that are left, a sink logit beside them. None: nothing is left to look at."""
    left = [i for i, score in enumerate(scores) if i not in hidden and score > -float("inf")]
    if not left:
        return None
    shares = plain_weights([*(scores[i] for i in left), *([] if sink is None else [sink])])
    weights = [0.0] * len(scores)
    for i, share in zip(left, shares, strict=False):
        weights[i] = share
    return weights


def logits_without(model, ids, heads_of, spans, mask=None, first=0):
    """Logits [B, T, V] where heads_of(row), a set of (layer, head), do not see the spans from rows behind them, from position `first` on."""

    def weights_of(layer, row, head, place, scores, sink):
        hidden = {i for start, stop in spans if stop <= place for i in range(start, stop)}
        if (layer, head) not in heads_of(row) or not hidden or place < first:
            return None
        return weights_without(scores, sink, hidden)

    return logits_with(model, ids, mask, weights_of=weights_of)
