"""Hidden states as they enter chosen layers, kept from one pass to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from headwise.models.model import Model


@contextmanager
def tapped(model: Model, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what enters some layers.

    Args:
        model: That runs.
        layers: Decoder layers.

    Yields:
        Layer -> [B, T, width] of the newest pass, detached; empty before the first one. The block may take entries out.
    """
    found: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            module: Any = model.layers[layer]
            hooks.callback(module.register_forward_pre_hook(partial(_keep, found, layer), with_kwargs=True).remove)
        yield found


def _keep(found: dict[int, Tensor], layer: int, _: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    found[layer] = (inputs[0] if inputs else options["hidden_states"]).detach()
