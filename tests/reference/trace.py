"""Features and localisation of the source probe by slow loops over one model, one head and one position at a time (arXiv:2505.15807, sec. 6)."""

import torch


def slow_rows(hf, ids, first, heads, weights, prompt):
    """ids: the text; rows first.. predict ids[first + 1:]. -> features [T, K], scores [T, prompt], from eager attention and whole layers."""
    outputs = {}
    layers = hf.model.layers
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given, i=i: outputs.__setitem__(i, given[0][0]))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        seen = hf(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    size = hf.config.head_dim
    features, scores = [], []
    for row in range(first, len(ids) - 1):
        token, said, places = ids[row + 1], [], torch.zeros(prompt)
        for (layer, head), weight in zip(heads, weights, strict=True):
            alone = torch.zeros_like(outputs[layer][row])
            alone[head * size : (head + 1) * size] = outputs[layer][row][head * size : (head + 1) * size]
            written = layers[layer].self_attn.o_proj.weight.double() @ alone.double()
            normed = written / (written.square().mean() + hf.config.rms_norm_eps).sqrt() * hf.model.norm.weight.double()
            ell = float((hf.lm_head.weight[token].double() @ normed).detach())
            said.append(ell)
            for position in range(prompt):
                places[position] += weight * ell * float(seen[layer][0, head, row, position])
        features.append(said)
        scores.append(places.tolist())
    return torch.tensor(features), torch.tensor(scores)
