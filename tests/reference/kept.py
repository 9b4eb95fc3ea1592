"""Slow reference of attention over a compressed cache: the full cache, with everything that a head does not hold masked away."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from tests.helpers import with_cache


def masked_attention(held, pads=None):
    """An attention function that hides prompt positions from the KV heads that do not hold them.

    held: layer -> per KV head a set of positions of the prompt [0, S). Positions behind the prompt are visible causally. pads: padding per row.
    """

    def attention(module, query, key, value, mask, scaling=None, **_):
        batch, heads, rows, _ = query.shape
        groups, length = key.shape[1], key.shape[2]
        out = torch.zeros(batch, rows, heads, value.shape[-1], dtype=query.dtype)
        for b in range(batch):
            for h in range(heads):
                g = h // (heads // groups)
                for t in range(rows):
                    at = length - rows + t
                    seen = []
                    for i in range(at + 1):
                        position = i - (pads[b] if pads else 0)
                        if position >= 0 and (
                            module.layer_idx not in held or i >= held["prompt"] or position in held[module.layer_idx][g]
                        ):
                            seen.append(i)
                    if seen:
                        logits = key[b, g, seen].double() @ query[b, h, t].double() * scaling
                        out[b, t, h] = (logits.softmax(0) @ value[b, g, seen].double()).to(query.dtype)
        return out, None

    return attention


@torch.no_grad()
def continued(model, prompt, rest, held, attention_mask=None, pads=None):
    """Logits of `rest` behind `prompt`: the prompt with full attention, then only what is held."""
    cache = DynamicCache(config=model.config)
    model(input_ids=prompt, attention_mask=attention_mask, **with_cache(cache), use_cache=True)
    AttentionInterface.register("kept_reference", masked_attention(held | {"prompt": prompt.shape[1]}, pads))
    AttentionMaskInterface.register("kept_reference", lambda **_: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("kept_reference")
    try:
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(rest)], dim=1)
        return model(
            input_ids=rest, attention_mask=attention_mask, **with_cache(cache), position_ids=_places(prompt, rest, pads)
        ).logits
    finally:
        model.set_attn_implementation(before)


def _places(prompt, rest, pads):
    places = torch.arange(prompt.shape[1], prompt.shape[1] + rest.shape[1])[None].repeat(len(rest), 1)
    return places - torch.tensor(pads)[:, None] if pads else places
