"""Relevance by full attention matrices and plain autograd, written from the method's card (section 3.1): slow, and without a line of the package's maths.

A copy of the model gets modules that spell the rules out: detached divisors, x * (f(x) / x), halves of products, attention as four matrices.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

FROZEN = {"gradient": False, "gim": True, "cp_lrp": True, "attnlrp": True}
HALVED = ("gim", "attnlrp")
LRP = ("cp_lrp", "attnlrp")


def product(a, b, rule, operation=torch.mul, constant=False):
    """A product of two activations; `constant`: CP-LRP takes the first factor as a number."""
    if rule in HALVED:
        return 0.5 * operation(a, b.detach()) + 0.5 * operation(a.detach(), b)
    return operation(a.detach() if constant and rule == "cp_lrp" else a, b)


def identity(function, x, rule, known=LRP):
    if rule not in known:
        return function(x)
    value = function(x)
    ratio = torch.where(x == 0, torch.full_like(x, 0.5), value / torch.where(x == 0, torch.ones_like(x), x))
    return x * ratio.detach()


class SlowNorm(nn.Module):
    def __init__(self, norm, rule):
        super().__init__()
        self.norm, self.rule = norm, rule
        kind = type(norm).__name__
        self.centred = kind.endswith("LayerNorm")
        self.added = 1.0 if kind.startswith(("Gemma", "Qwen3Next")) else 0.0
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def forward(self, x):
        if self.centred:
            x = x - x.mean(dim=-1, keepdim=True)
        deviation = torch.sqrt((x * x).mean(dim=-1, keepdim=True) + self.eps)
        y = x / (deviation.detach() if FROZEN[self.rule] else deviation) * (self.added + self.norm.weight)
        return y if getattr(self.norm, "bias", None) is None else y + self.norm.bias


class SlowMLP(nn.Module):
    """Gated with separate or fused projections, or not gated."""

    def __init__(self, mlp, rule):
        super().__init__()
        self.mlp, self.rule = mlp, rule

    def forward(self, x):
        own, rule = self.mlp, self.rule
        for first, second in (("dense_h_to_4h", "dense_4h_to_h"), ("c_fc", "c_proj")):
            if hasattr(own, first):
                return getattr(own, second)(identity(own.act, getattr(own, first)(x), rule))
        if hasattr(own, "gate_up_proj"):
            gate, up = own.gate_up_proj(x).chunk(2, dim=-1)
            act = own.activation_fn
        else:
            gate, up, act = own.gate_proj(x), own.up_proj(x), own.act_fn
        return own.down_proj(product(identity(act, gate, rule), up, rule, constant=True))


class SlowExperts(nn.Module):
    def __init__(self, experts, rule):
        super().__init__()
        self.experts, self.rule = experts, rule

    def forward(self, hidden, which, weights):
        own, rule = self.experts, self.rule
        rows = []
        for token in range(len(hidden)):
            total = 0
            for place in range(which.shape[1]):
                expert = int(which[token, place])
                out = self.written(hidden[token], expert) if hasattr(own, "alpha") else self.plain(hidden[token], expert)
                total = total + product(weights[token, place], out, rule, constant=True)
            rows.append(total)
        return torch.stack(rows)

    def plain(self, x, expert):
        own = self.experts
        gate, up = (own.gate_up_proj[expert] @ x).chunk(2)
        return own.down_proj[expert] @ product(identity(own.act_fn, gate, self.rule), up, self.rule, constant=True)

    def written(self, x, expert):
        own, rule = self.experts, self.rule
        both = x @ own.gate_up_proj[expert] + own.gate_up_proj_bias[expert]
        gate, up = both[::2], both[1::2]

        def glu(g):
            g = g.clamp(max=own.limit)
            return g * torch.sigmoid(own.alpha * g)

        up = identity(lambda u: u.clamp(-own.limit, own.limit), up, rule) + 1
        return product(identity(glu, gate, rule), up, rule, constant=True) @ own.down_proj[expert] + own.down_proj_bias[expert]


def slow_attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **_):
    rule, kept = module.slow_rule, module.slow_kept
    each = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(each, dim=1), value.repeat_interleave(each, dim=1)
    logits = product(query, key, rule, lambda q, k: q @ k.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = identity(lambda x: softcap * torch.tanh(x / softcap), logits, rule)
    rows, columns = logits.shape[-2:]
    seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows) if mask is None else mask
    logits = logits.masked_fill(~seen, -1e30)

    def softmax(x, sink):
        if sink is not None:
            x = torch.cat([x, sink], dim=-1)
        found = x.softmax(dim=-1)
        return found if sink is None else found[..., :-1]

    sink = None if s_aux is None else s_aux.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
    weights = softmax(logits, sink)
    if rule == "gim":
        soft = softmax(logits / 2, None if sink is None else sink / 2)
        weights = weights.detach() + 2 * (soft - soft.detach())
    if rule == "cp_lrp":
        weights = weights.detach().requires_grad_(True)
    weights.retain_grad()
    out = product(weights, value, rule, torch.matmul).transpose(1, 2)
    out.retain_grad()
    kept[module.layer_idx] = SimpleNamespace(weights=weights, out=out)
    return out, None


def slow_model(model, rule):
    """A copy of a headwise Model's transformers model that spells a rule out; logits come in front of the final cap."""
    hf = copy.deepcopy(model.hf).requires_grad_(False)
    kept = {}
    AttentionInterface.register("slow_relevance", slow_attention)
    AttentionMaskInterface.register("slow_relevance", sdpa_mask)
    hf.set_attn_implementation("slow_relevance")
    for module in list(hf.modules()):
        if hasattr(module, "layer_idx") and "Attention" in type(module).__name__:
            module.slow_rule, module.slow_kept = rule, kept
        for name, part in list(module.named_children()):
            kind = type(part).__name__
            if kind.endswith(("RMSNorm", "LayerNorm")):
                setattr(module, name, SlowNorm(part, rule))
            elif kind.endswith("Experts"):
                setattr(module, name, SlowExperts(part, rule))
            elif kind.endswith("MLP") and kind != "GptOssMLP":
                setattr(module, name, SlowMLP(part, rule))
    cap = model.family.logit_cap
    if cap:
        setattr(hf.config.get_text_config(decoder=True), cap, None)
    return hf, kept


def slow_relevance(model, rule, ids, mask=None, value=None):
    """Everything that `attribute` finds, one text after another. value: logits [B, S, V] -> scalar or [B]."""
    hf, kept = slow_model(model, rule)
    embeddings = hf.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = hf(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
    value(logits).sum().backward()
    layers, heads = model.heads.shape
    batch, length = ids.shape
    found = SimpleNamespace(
        logits=logits.detach(),
        tokens=(embeddings * embeddings.grad).sum(dim=-1).detach(),
        heads=torch.full((batch, layers, heads), torch.nan, dtype=logits.dtype),
        signed=torch.full((batch, layers, heads), torch.nan, dtype=logits.dtype),
        weights=torch.full((batch, layers, heads, length, length), torch.nan, dtype=logits.dtype),
        attention={layer: one.weights.detach() for layer, one in kept.items()},
    )
    for layer, one in kept.items():
        relevance = (one.out * one.out.grad).detach()
        found.heads[:, layer] = relevance.clamp(min=0).sum(dim=(1, 3))
        found.signed[:, layer] = relevance.sum(dim=(1, 3))
        found.weights[:, layer] = (one.weights * one.weights.grad).detach()
    return found
