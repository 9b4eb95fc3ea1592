"""Slow references of the baselines' choices, written from the papers: one layer, one row of a batch, plain loops in float64."""


def window_scores(query, keys, rows, window, kernel, scaling):
    """SnapKV's scores of every query head: attention of the last `rows` queries, summed, smoothed over `kernel` neighbours.

    query [H, S, d], keys [G, S, d]. The window itself counts 0.
    """
    heads, length = query.shape[0], keys.shape[1]
    each = heads // keys.shape[0]
    found = []
    for head in range(heads):
        raw = [0.0] * length
        for row in range(length - rows, length):
            logits = keys[head // each, : row + 1].double() @ query[head, row].double() * scaling
            for place, weight in enumerate(logits.softmax(0).tolist()):
                raw[place] += weight
        raw[length - window :] = [0.0] * window
        half = kernel // 2
        found.append([sum(raw[max(0, i - half) : i + half + 1]) / kernel for i in range(length)])
    return found


def grouped(scores, groups):
    """Mean over the query heads of each KV head: head h belongs to h // (H / G), as in transformers."""
    each = len(scores) // groups
    return [
        [sum(scores[g * each + i][place] for i in range(each)) / each for place in range(len(scores[0]))] for g in range(groups)
    ]


def misgrouped(scores, groups):
    """The mistake of CompressKV's released baselines: head h counts for KV head h mod G."""
    return [
        [sum(own[place] for own in scores[g::groups]) / len(scores[g::groups]) for place in range(len(scores[0]))]
        for g in range(groups)
    ]


def best(scores, count, sinks, window):
    """Positions of one head: sinks and window, then the highest scores."""
    length = len(scores)
    kept = set(range(sinks)) | set(range(length - window, length))
    for place in sorted(range(length), key=lambda i: -scores[i]):
        if len(kept) >= count:
            break
        kept.add(place)
    return kept


def adaptive_counts(scores, budget, floor, sinks, window):
    """AdaKV: every head is sure of its first floor x budget positions, then the highest scores of all heads are taken one by one."""
    length = len(scores[0])
    fixed = set(range(sinks)) | set(range(length - window, length))
    ranked = [sorted(range(length), key=lambda i: (i not in fixed, -own[i])) for own in scores]
    taken = [set(order[: int(floor * budget)]) | fixed for order in ranked]
    while sum(map(len, taken)) < budget * len(scores):
        left = [(scores[head][i], head, i) for head in range(len(scores)) for i in range(length) if i not in taken[head]]
        _, head, place = max(left)
        taken[head].add(place)
    return [len(own) for own in taken]


def pyramid_shares(layers, budget, beta):
    """PyramidKV: an arithmetic sequence from 2 B - B / beta in the first layer to B / beta in the last."""
    first, last = 2 * budget - budget / beta, budget / beta
    return [first - (first - last) * layer / (layers - 1) for layer in range(layers)]


def head_shares(scores, budget, beta):
    """HeadKV: B (1 - 1 / beta) for every KV head, and its part of a pool of B / beta per head. scores [layer][KV head]."""
    heads = sum(map(len, scores))
    total = sum(map(sum, scores))
    return [[budget * (1 - 1 / beta) + own / total * (budget / beta * heads) for own in row] for row in scores]


def released_headkv(query, keys, scores, layer, budget, window, beta, scaling):
    """HeadKV as released, one layer: the positions of every query head, each with a budget of its own, window included.

    query [H, S, d], keys [G, S, d]. scores [layer][query head] of all layers. budget: positions per query head on average. The attention of the last
    `window` queries to what stands in front of the window is summed, smoothed by the maximum over 7 neighbours, and each head takes its highest.
    """
    heads, length = query.shape[0], keys.shape[1]
    total, count = sum(map(sum, scores)), sum(map(len, scores))
    room = budget - window
    pool = int(room / beta)
    found = []
    for head in range(heads):
        raw = [0.0] * (length - window)
        for row in range(length - window, length):
            weights = (keys[head // (heads // keys.shape[0]), : row + 1].double() @ query[head, row].double() * scaling).softmax(
                0
            )
            raw = [sum_ + weight for sum_, weight in zip(raw, weights.tolist()[: length - window], strict=True)]
        smooth = [max(raw[max(0, i - 3) : i + 4]) for i in range(len(raw))]
        own = round(room - pool + scores[layer][head] / total * pool * count)
        best = sorted(range(len(raw)), key=lambda i: -smooth[i])[:own]
        found.append({*best, *range(length - window, length)})
    return found
