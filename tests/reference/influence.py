"""Slow AttentionInfluence from the paper: one document, one token, one row at a time, with transformers' own eager attention."""

import copy
import math

import torch

from headwise.models.model import as_model


@torch.no_grad()
def plain_losses(model, ids):
    """[n - 1] loss of each token but the first: -log of the softmax of full logits, labels shifted once."""
    logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    losses = []
    for position in range(len(ids) - 1):
        row = logits[position]
        losses.append(float(torch.logsumexp(row, dim=0) - row[ids[position + 1]]))
    return losses


def reference_model(model, heads):
    """The model in which heads attend to all positions that they see equally (Hua et al. 2025, App. C): weights 1 / (t + 1), written out."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    chosen = as_model(twin).by_layer(heads)
    for layer, module in as_model(twin).modules.items():
        if layer in chosen:
            module.register_forward_hook(_uniform(module, chosen[layer]), with_kwargs=True)
    return twin


def _uniform(module, heads):
    """For Llama: the output of the attention with the heads' part replaced by the running mean of their values."""

    def change(_, inputs, options, output):
        hidden = options["hidden_states"] if "hidden_states" in options else inputs[0]
        dim, group = module.head_dim, module.num_key_value_groups
        values = module.v_proj(hidden)[0]  # [T, kv_heads * d]
        weight = module.o_proj.weight
        out, eager = output[0].clone(), output[1]  # eager: attention weights [1, H, T, T]
        for head in heads:
            value = values[:, head // group * dim : (head // group + 1) * dim]
            columns = weight[:, head * dim : (head + 1) * dim]
            own = eager[0, head] @ value
            for t in range(len(value)):
                mean = sum(value[j] for j in range(t + 1)) / (t + 1)
                out[0, t] += columns @ (mean - own[t])
        return (out, *output[1:])

    return change


def influence_of(base, changed, floor=0.05):
    """(score, mean base, mean changed) of one document from its tokens' losses."""
    low, high = math.fsum(base) / len(base), math.fsum(changed) / len(changed)
    return (high - low) / max(low, floor), low, high


def window_losses(model, ids, size):
    """Losses of all windows of `size` tokens, one after another."""
    found = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        if len(part) > 1:
            found += plain_losses(model, part)
    return found


def official_bug_losses(model, ids):
    """What a reproduction computed: labels shifted before the model's own loss shifts them again, so every loss is two tokens ahead."""
    logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    return [float(torch.logsumexp(logits[i], dim=0) - logits[i][ids[i + 2]]) for i in range(len(ids) - 2)]


@torch.no_grad()
def proxy_table(model, prompt, rule="set", late=0):
    """[L][H] share of the value copied: for each answer token the eager attention row of the position *before* it.

    late=1 reads the row of the answer token itself, as a reproduction did.
    """
    text = [*prompt.ids, *prompt.gold]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        weights = model(torch.tensor([text]), output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(before)
    start, stop = prompt.span("value")
    table = []
    for layer in weights:
        row_of_heads = []
        for head in range(layer.shape[1]):
            copied = []
            for step, token in enumerate(prompt.gold):
                query = len(prompt.ids) + step - 1 + late
                row = layer[0, head, query, : query + 1]
                place = int(row.argmax())
                if start <= place < stop and text[place] == token:
                    copied.append(place)
            row_of_heads.append(len(set(copied) if rule == "set" else copied) / (stop - start))
        table.append(row_of_heads)
    return table
