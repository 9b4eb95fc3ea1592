"""The official retrieval-head procedure, written from the method card (sections 3 and 4): the slow way to the same hits.

The prompt without its last token is prefilled with SDPA, then the answer is decoded token by token with eager attention that
returns the weights of every head; a Python loop takes the strongest key of each layer and head at each step and counts a hit if it
lies in the needle and holds the token just generated. Only additions: sliding-window caches forget old keys, so positions are
shifted back; layers without softmax attention get -1.
"""

import torch

from tests.helpers import with_cache


@torch.no_grad()
def official_copy_run(model, prompt_ids, needle_span, stop_ids, max_new_tokens):
    """-> (hits [L, H] int64, the multiset count; generated ids, stop token included; argmax [L, H, T] int64)."""
    before = model.config._attn_implementation
    layers, heads = attention_layers(model), model.config.num_attention_heads
    hits = torch.zeros(len(layers), heads, dtype=torch.int64)
    generated, steps = [], []
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    try:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values if ids.shape[1] > 1 else None
        model.set_attn_implementation("eager")
        token = ids[:, -1:]
        while len(generated) < max_new_tokens:
            output = model(input_ids=token, **with_cache(past), use_cache=True, output_attentions=True)
            past = output.past_key_values
            token = output.logits[0, -1].argmax().view(1, 1)
            weights = iter([w for w in output.attentions if w is not None])
            seen = len(prompt_ids) + len(generated)
            strongest = torch.full((len(layers), heads), -1)
            for layer, has_heads in enumerate(layers):
                if not has_heads:
                    continue
                weight = next(weights)
                for head in range(heads):
                    index = weight[0, head, -1].topk(1).indices.item() + seen - weight.shape[-1]
                    strongest[layer, head] = index
                    if needle_span[0] <= index < needle_span[1] and prompt_ids[index] == token.item():
                        hits[layer, head] += 1
            steps.append(strongest)
            generated.append(token.item())
            if generated[-1] in stop_ids:
                break
    finally:
        model.set_attn_implementation(before)
    return hits, generated, torch.stack(steps, dim=-1)


def attention_layers(model):
    """For each decoder layer: whether it has softmax attention."""
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * model.config.num_hidden_layers
    return [kind != "linear_attention" for kind in kinds]
