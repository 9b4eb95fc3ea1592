"""SEAL (arXiv:2501.15225) from its definition: the output of head h enters the output projection as s_h * o_h, so that
dL/ds_h = sum over rows, positions and dimensions of o_h * dL/d(s_h * o_h). Plain loops, no code of the package."""

import torch


def slow_gradients(projections, heads, width, run):
    """Gradient of a loss towards the scale of each head, where all scales are 1.

    projections: layer -> the module that reads the outputs of heads. heads: (layer, head). width: of a head. run: () -> the loss.
    """
    seen = {}

    def keep(layer):
        def hook(_, inputs):
            own = inputs[0].detach().requires_grad_() if not inputs[0].requires_grad else inputs[0]
            own.retain_grad()
            seen[layer] = own
            return (own, *inputs[1:])

        return hook

    hooks = [module.register_forward_pre_hook(keep(layer)) for layer, module in projections.items()]
    try:
        run().backward()
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for layer, head in heads:
        total = 0.0
        outputs, gradients = seen[layer].detach(), seen[layer].grad
        for row in range(outputs.shape[0]):
            for position in range(outputs.shape[1]):
                for i in range(head * width, (head + 1) * width):
                    total += float(outputs[row, position, i] * gradients[row, position, i])
        found.append(total)
    return torch.tensor(found)
