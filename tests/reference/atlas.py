"""Slow head maps of the Atlas: one unpadded prompt at a time, eager attention whose matrices are kept, loops over heads, rows and tokens.

Plain input * gradient only; the altered gradients of other rules have references of their own.
"""

import torch


def explained(model, ids, target):
    """(outputs of the heads z and their gradients [L][T, H, d], attention matrices and their gradients [L][H, T, T], logit)."""
    outputs, undo = [], []
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for layer in model.model.layers:

            def keep(_, inputs):
                inputs[0].retain_grad()
                outputs.append(inputs[0])

            undo.append(layer.self_attn.o_proj.register_forward_pre_hook(keep))
        embedded = model.get_input_embeddings()(torch.tensor([list(ids)])).detach().requires_grad_(True)
        out = model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        for matrix in out.attentions:
            matrix.retain_grad()
        logit = out.logits[0, -1, target]
        logit.backward()
    finally:
        model.set_attn_implementation(before)
        for handle in undo:
            handle.remove()
        model.zero_grad()
    heads = model.config.num_attention_heads
    z = [(one[0].unflatten(-1, (heads, -1)).detach(), one.grad[0].unflatten(-1, (heads, -1))) for one in outputs]
    return z, [(matrix[0].detach(), matrix.grad[0]) for matrix in out.attentions], float(logit.detach())


def contributions(model, ids, target):
    """([L][H] sums of positive parts, [L][H] signed sums, the logit)."""
    z, _, logit = explained(model, ids, target)
    positive, signed = [], []
    for output, gradient in z:
        each = [[float(part) for part in (output[:, h] * gradient[:, h]).flatten()] for h in range(output.shape[1])]
        positive.append([sum(part for part in parts if part > 0) for parts in each])
        signed.append([sum(parts) for parts in each])
    return positive, signed, logit


def d_score(model, opened, swapped, closed, right, normalize):
    """[L][H]: D of one record. opened, closed: ids of the prompts; swapped, right: their targets."""
    parts = []
    for ids, target in ((opened, swapped), (closed, right)):
        positive, _, logit = contributions(model, ids, target)
        size = {"none": 1.0, "logit": abs(logit), "share": sum(map(sum, positive))}[normalize]
        parts.append([[one / size for one in layer] for layer in positive])
    return [[a - b for a, b in zip(*layers, strict=True)] for layers in zip(*parts, strict=True)]


def rho(model, ids, target, spans, rows, positive):
    """[L][H]: what each head takes from the tokens of the spans [start, stop)."""
    _, matrices, _ = explained(model, ids, target)
    table = []
    for weights, gradient in matrices:
        table.append([])
        for h in range(len(weights)):
            total = 0.0
            for start, stop in spans:
                for j in range(start, stop):
                    chosen = range(len(ids)) if rows == "all" else [len(ids) - 1]
                    terms = [float(weights[h, i, j] * gradient[h, i, j]) for i in chosen]
                    if positive == "pair":
                        total += sum(term for term in terms if term > 0)
                    else:
                        total += max(sum(terms), 0.0) if positive == "token" else sum(terms)
            table[-1].append(total)
    return table
