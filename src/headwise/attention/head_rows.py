"""What chosen heads give and where they look, at the newest rows of every pass: only those rows of those heads are computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwise.attention.call import Call, Pass
from headwise.attention.plan import attached
from headwise.heads.types import Heads
from headwise.maths.columns import attention_rows


@dataclass(frozen=True)
class LayerRows:
    """The R newest rows of the n chosen heads of one layer.

    Attributes:
        layer: Decoder layer.
        heads: The chosen heads, ascending.
        outputs: [B, R, n, d], what the output projection takes from each head, with all edits and behind an output gate.
        call: The attention call of the layer.
    """

    layer: int
    heads: list[int]
    outputs: Tensor
    call: Call

    def attention(self, rows: slice, stop: int) -> Tensor:
        """Attention weights of some of the rows.

        Args:
            rows: Which of the R rows.
            stop: Columns are the positions 0 to `stop` - 1.

        Returns:
            [B, n, rows, stop] float32.

        Raises:
            HeadwiseError: In a pass over a compressed cache, which does not hold all keys.
        """
        call, count = self.call, self.outputs.shape[1]
        length = call.query.shape[2]
        chosen = range(length - count, length)[rows]
        picked = slice(chosen.start, chosen.stop)
        keys, mask, total = call.keys, call.visible, call.start + length
        (part,) = call.whole.parts(length, total)  # a sliding window's cache no longer holds the first positions
        group = call.query.shape[1] // keys[0].shape[1]
        mask = _causal(picked, part.length, length, keys[0].device) if mask is None else mask[:, :, picked]
        found = []
        for kv in sorted({head // group for head in self.heads}):
            own = [head for head in self.heads if head // group == kv]
            sinks = None if call.sinks is None else call.sinks[own]
            found.append(
                attention_rows(
                    call.query[:, own, picked],
                    [segment[:, kv : kv + 1] for segment in keys],
                    scaling=call.scaling,
                    stop=max(0, stop - part.first),
                    mask=mask,
                    softcap=call.softcap,
                    sinks=sinks,
                )
            )
        return nn.functional.pad(torch.cat(found, dim=1), (min(part.first, stop), 0))


def _causal(rows: slice, keys: int, length: int, device: torch.device) -> Tensor | None:
    """[1, 1, R, S] bool for rows of a pass of `length` rows; None where they are the last ones, which need no mask."""
    if rows.stop == length:
        return None
    last = torch.arange(keys - length + rows.start, keys - length + rows.stop, device=device)
    return (torch.arange(keys, device=device) <= last[:, None])[None, None]


class HeadRows:
    """Step: hands the newest rows of chosen heads to `use`, layer by layer. Arguments as for `head_rows`, with the heads by layer."""

    def __init__(
        self, heads: Mapping[int, list[int]], head_dim: int, rows: Callable[[Pass], int], use: Callable[[LayerRows], None]
    ) -> None:
        self.heads, self._dim, self._wanted, self._use = heads, head_dim, rows, use
        self._rows, self._calls = 0, dict[int, Call]()

    def begin(self, now: Pass) -> None:
        """A pass of the whole model begins: how many of its rows are wanted."""
        self._calls.clear()
        self._rows = self._wanted(now)

    def look(self, call: Call) -> None:
        """Keep the call until the output projection is reached."""
        if self._rows > 0 and call.layer in self.heads:
            self._calls[call.layer] = call

    def projecting(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """The hook in front of a layer's output projection."""

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            call = self._calls.pop(layer, None)
            if call is not None:
                given = inputs[0][:, -self._rows :]
                outputs = given.unflatten(-1, (-1, self._dim))[:, :, self.heads[layer]]
                self._use(LayerRows(layer, self.heads[layer], outputs, call))

        return hook


@contextmanager
def head_rows(
    model: Any, heads: Heads | None, rows: Callable[[Pass], int], use: Callable[[LayerRows], None]
) -> Iterator[HeadRows]:
    """Inside the block every pass hands the newest rows of chosen heads to `use`; nothing is changed.

    Args:
        model: A `Model`, or a transformers model.
        heads: Whose rows (None: all heads of all attention layers).
        rows: Called as a pass begins: how many of its newest rows are wanted, at most as many as it has; 0: none.
        use: Called once per layer with chosen heads, in the order of layers.

    Yields:
        The step.

    Raises:
        HeadwiseError: Heads of another model.
    """
    with attached(model) as plan:
        step = HeadRows(plan.model.by_layer(heads), plan.model.heads.head_dim, rows, use)
        hooks = [plan.model.part("output", layer).register_forward_pre_hook(step.projecting(layer)) for layer in step.heads]
        try:
            with plan.running(step):
                yield step
        finally:
            for hook in hooks:
                hook.remove()
