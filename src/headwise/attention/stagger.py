"""Many variants of a model that share their lower layers: a variant is a row of the batch from the first layer on in which it differs.

A model without head L5H6 is the unchanged model up to layer 5. So row 0 is the unchanged model, and in front of each layer that is the first
changed one of some variants row 0 is copied once for each of them: layer l runs 1 + (variants that begin at l or below) rows. `branches` does
this for whole texts, where all variants part at one layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headwise.attention.ablate import Ablation, ByFirstRows, head_masks
from headwise.attention.branches import first_changed_layer
from headwise.attention.call import Pass
from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet


class StaggeredAblation(Ablation):
    """Step: `Ablation` in passes of one row that grow on their way through the layers."""

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins.

        Raises:
            HeadwiseError: It has more than one row.
        """
        super().begin(now)
        if now.inputs is not None and len(now.inputs) != 1:
            raise HeadwiseError(f"variants are made of one row; this pass has {len(now.inputs)}")


def first_layers(sets: Sequence[HeadSet], layers: int) -> list[int]:
    """The lowest layer with a chosen head in each set; `layers` for an empty one, which changes none."""
    return [first_changed_layer(chosen) if len(chosen) else layers for chosen in sets]


@contextmanager
def staggered(model: Any, sets: Sequence[HeadSet], mode: str = "zero", means: Tensor | None = None) -> Iterator[list[int]]:
    """Inside the block a pass of one row comes out as one row per variant, and costs little more than the layers that differ.

    Over a cache that takes each layer's rows as they come (see `shared_past`, for one row), each variant goes on from its own keys in a later pass.

    Args:
        model: A `Model`, or a transformers model.
        sets: Heads that are ablated in each variant, in all rows of the text; an empty set is the unchanged model.
        mode: `zero`, `uniform` or `mean`, see `ablate`.
        means: For mode `mean`, see `ablate`.

    Yields:
        Which row of a pass's output belongs to each set.

    Raises:
        HeadwiseError: As `ablate`; a model with recurrent layers, whose states do not grow by rows; and in a pass of several rows.
    """
    with attached(model) as plan:
        if plan.model.is_hybrid:
            raise HeadwiseError(f"{plan.model.name} has recurrent layers, so its variants cannot share layers")
        count = plan.model.heads.shape[0]
        firsts = first_layers(sets, count)
        order = sorted((i for i, first in enumerate(firsts) if first < count), key=firsts.__getitem__)
        places = dict(zip(order, range(1, len(order) + 1), strict=True))
        unchanged = HeadSet((), plan.model.heads.shape)
        masks = head_masks(plan.model, [unchanged, *(sets[i] for i in order)])
        step = StaggeredAblation(masks, mode, "all", None, means, by_row=ByFirstRows)
        begins, layers, handles = Counter(firsts[i] for i in order), list(plan.model.layers), []
        try:
            for layer, more in begins.items():
                handles.append(layers[layer].register_forward_pre_hook(_more_rows(more), with_kwargs=True))
            with plan.running(step):
                yield [places.get(i, 0) for i in range(len(sets))]
        finally:
            for handle in handles:
                handle.remove()


def _more_rows(more: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Hook in front of a decoder layer: its hidden states [n, T, width] with `more` copies of row 0 behind them.

    Nothing else has a row of its own: positions and masks of a pass of one row serve any number of rows.
    """

    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden: Tensor = inputs[0] if inputs else options["hidden_states"]
        grown = torch.cat([hidden, hidden[:1].expand(more, -1, -1)])
        return ((grown, *inputs[1:]), options) if inputs else (inputs, options | {"hidden_states": grown})

    return hook
