"""Score of a sentence by the attention of heads to the documents: loops over whole attention matrices."""

import torch


def sentence_scores(hf, ids, passages, sentences, heads, pool):
    """[S] mean over a sentence's tokens of the (mean or largest) attention mass of the heads on the passages.

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
    scores, place = [], len(ids)
    for sentence in sentences:
        found = []
        for _ in sentence:
            masses = []
            for layer, head in heads:
                row = attentions[layer][0, head, place - 1]  # the row that predicts this token
                masses.append(sum(row[i].item() for start, stop in passages for i in range(start, stop)))
            found.append(max(masses) if pool == "max" else sum(masses) / len(masses))
            place += 1
        scores.append(sum(found) / len(found))
    return scores
