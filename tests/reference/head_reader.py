"""Score of a sentence by the attention of heads to the documents: loops over whole attention matrices."""

import torch


def sentence_scores(hf, ids, passages, sentences, heads, pool):
    """[S] attention and [S] copying: means over a sentence's tokens of what the heads do, on average or at most.

    Attention: mass on the passages. Copying: 1 if the strongest key lies in a passage and holds the token that the row predicts.

    Args:
        hf: A transformers model that gives attention matrices.
        ids: The prompt.
        passages: (start, stop) of each passage.
        sentences: S lists of ids behind the prompt.
        heads: (layer, head).
        pool: mean or max, over heads.
    """
    text = list(ids) + [token for sentence in sentences for token in sentence]
    with torch.no_grad():
        attentions = hf(torch.tensor([text]), output_attentions=True).attentions
    attention, copying, place = [], [], len(ids)
    for sentence in sentences:
        masses, hits = [], []
        for token in sentence:
            mass, hit = [], []
            for layer, head in heads:
                row = attentions[layer][0, head, place - 1]  # the row that predicts this token
                mass.append(sum(row[i].item() for start, stop in passages for i in range(start, stop)))
                best = max(range(place), key=lambda i: row[i].item())
                hit.append(float(any(start <= best < stop for start, stop in passages) and text[best] == token))
            masses.append(max(mass) if pool == "max" else sum(mass) / len(mass))
            hits.append(max(hit) if pool == "max" else sum(hit) / len(hit))
            place += 1
        attention.append(sum(masses) / len(masses))
        copying.append(sum(hits) / len(hits))
    return attention, copying
