"""Gated attention for finding gates: every KV head's output is a mixture of full attention and of attention to sinks and recent tokens.

DuoAttention, Xiao et al. 2024 (arXiv:2410.10819, section 2.2). The paper's formula mixes two attentions over the student's own states (`self`); its
code takes the full one from the teacher, the model with all gates at 1 (`teacher`), so that errors do not pass through retrieval heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches.groups import Window
from headwise.heads.errors import HeadwiseError
from headwise.maths.gates import gate_loss
from headwise.maths.gates import mix as mixture
from headwise.maths.sink_window import sink_window_attention
from headwise.models.model import Model, as_model, device_of

MIXES = ("teacher", "self")


class Gating:
    """The gates of one `gated` block; `gated` makes it.

    Args:
        hf: The transformers model.
        model: The same model, as the plan knows it.
        gates: [L, KV heads] float32: read at every pass, so an optimiser may change them in place.
        window: What a streaming head sees.
        mix: `teacher` or `self`, see above.

    Attributes:
        gates: As given.
        skipped: Layers that they do not reach, because they have no full attention; those stay as they are.
    """

    def __init__(self, hf: Any, model: Model, gates: Tensor, window: Window, mix: str) -> None:
        self.gates, self._model, self._window, self._mix = gates, hf, window, mix
        self._layers = frozenset(model.heads.full_layers)
        self.skipped = sorted(set(range(model.heads.shape[0])) - self._layers)
        self._teaching = False
        self._taught: dict[int, Tensor] = {}

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """A pass in here is that of the full model, without gradients. With mix `teacher` one pass of the student follows over the same text.

        The teacher runs alone and not as half of a doubled batch: it needs no activations for a gradient then, and its attention outputs, which
        exist anyway, are only held until the student has used them.
        """
        self._teaching = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._teaching = False

    def both(self, ids: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One pass of the full model, then one of the gated model over the same texts.

        Args:
            ids: Texts [B, T] int64 of equal length, without padding.
            places: n positions in [0, T), the same in every text.

        Returns:
            (teacher, student): last hidden states [B, n, width] each, after the final norm. Only the student's carry gradients.
        """
        with self.teacher():
            teacher = last_hidden(self._model, ids, places)
        return teacher, last_hidden(self._model, ids, places)

    def edit_output(self, call: Call, output: Tensor) -> Tensor:
        """Mix the output of a layer with full attention: gate x full + (1 - gate) x streaming (DuoAttention, section 2.2).

        Args:
            call: The attention call of that layer.
            output: [B, T, H, d], its output with full attention.

        Returns:
            [B, T, H, d]; the output as it was in skipped layers and in a pass of the teacher.

        Raises:
            HeadwiseError: A pass over a cache or with a padding mask, or mix `teacher` without a pass of the teacher before it.
        """
        if call.layer not in self._layers:
            return output
        if call.start or len(call.keys) > 1 or call.query.shape[2] != call.keys[0].shape[2]:
            raise HeadwiseError("gated attention runs over whole texts; leave the cache out (use_cache=False)")
        if call.mask is not None:
            raise HeadwiseError("gated attention takes rows of equal length without padding and without a mask of their own")
        if self._teaching:
            if self._mix == "teacher":
                self._taught[call.layer] = output
            return output
        stream = sink_window_attention(
            call.query,
            call.keys[0],
            call.values[0],
            **self._window._asdict(),
            scaling=call.scaling,
            softcap=call.softcap,
            sink_logits=call.sinks,
        )
        full = output if self._mix == "self" else self._from_teacher(call.layer, output)
        return mixture(full, stream, self.gates[call.layer].to(output.device))

    def _from_teacher(self, layer: int, like: Tensor) -> Tensor:
        taught = self._taught.pop(layer, None)
        if taught is None or taught.shape != like.shape:
            raise HeadwiseError(
                "mix 'teacher' needs a pass over the same text inside `with gating.teacher():` before each of the student's"
            )
        return taught


@contextmanager
def gated(hf: Any, gates: Tensor, window: Window, mix: str = "self") -> Iterator[Gating]:
    """Run the model with gated attention inside the block; its weights are frozen there, and gradients reach the gates.

    Args:
        hf: A transformers model.
        gates: [L, KV heads] float32 on the model's device, clamped to [0, 1] where they are used: 1 is full attention, 0 streaming.
        window: What a streaming head sees; sinks and recent of at least 1 each.
        mix: `self` mixes two attentions over the gated model's own states; `teacher` takes the full one from a pass in `Gating.teacher`.

    Yields:
        The gates at work, with `teacher` and `both`. After the block the parameters that were trainable are so again.

    Raises:
        HeadwiseError: Another mix, window or shape, dtype or device of gates, or a model without full attention.
    """
    if mix not in MIXES:
        raise HeadwiseError(f"unknown mix {mix!r}; use {' or '.join(MIXES)}")
    if window.sinks < 1 or window.recent < 1:
        raise HeadwiseError(f"sinks and recent must be at least 1 token each; got {window.sinks} and {window.recent}")
    with attached(hf) as plan:
        model = plan.model
        shape = (model.heads.shape[0], model.heads.kv_heads)
        if tuple(gates.shape) != shape or gates.dtype != torch.float32 or gates.device != device_of(hf):
            raise HeadwiseError(
                f"{model.name} needs float32 gates [{shape[0]}, {shape[1]}] on {device_of(hf)}; got {gates.dtype} "
                f"{list(gates.shape)} on {gates.device}"
            )
        if not model.heads.full_layers:
            raise HeadwiseError(f"{model.name} has no layer with full attention, so there is nothing to gate")
        gating = Gating(hf, model, gates, window, mix)
        trained = [parameter for parameter in hf.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with plan.running(gating):
                yield gating
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def streaming_loss(
    hf: Any, texts: Sequence[tuple[Tensor, Sequence[int]]], window: Window
) -> Callable[[NDArray[np.bool_]], float]:
    """Measures a pattern: mean distillation loss over the texts if heads stream where it is False (self-mixing, gates 0 and 1).

    Args:
        hf: A transformers model.
        texts: (ids [1, T], places to compare) each; at least one.
        window: What a streaming head sees.

    Returns:
        A function from bool [full-attention layers] or [full-attention layers, KV heads] to a number of at least 0, smaller is better: what
        rule Z5 of `layer_pattern` asks for. Each call costs two passes per text.
    """
    model = as_model(hf)

    @torch.no_grad()
    def measured(pattern: NDArray[np.bool_]) -> float:
        gates = torch.ones(model.heads.shape[0], model.heads.kv_heads, device=device_of(hf))
        gates[model.heads.full_layers] = torch.from_numpy(pattern.reshape(len(pattern), -1)).to(gates)
        with gated(hf, gates, window) as gating:
            pairs = [gating.both(ids, places) for ids, places in texts]
        return sum(float(gate_loss(student, teacher, gates).distillation) for teacher, student in pairs) / len(pairs)

    return measured


def last_hidden(model: Any, ids: Tensor, places: Sequence[int]) -> Tensor:
    """Last hidden states after the final norm at some places of texts; no logits are computed.

    Args:
        model: A transformers model.
        ids: Texts [B, T] int64.
        places: n positions in [0, T), the same in every text.

    Returns:
        [B, n, width] in the model's dtype.
    """
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, list(places)]
