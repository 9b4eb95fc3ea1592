"""Steering: a bias on the attention logits of chosen heads towards (or away from) chosen spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwise.attach.plan import Call, attached
from headwise.core.heads import HeadSet
from headwise.maths.attend import attend


class Steering:
    """Adds `bias` to the logits of `spans` in the chosen heads, for query rows behind each span."""

    def __init__(self, heads: HeadSet, spans: Sequence[tuple[int, int]], bias: float) -> None:
        self._heads: dict[int, list[int]] = {}
        for head in heads:
            self._heads.setdefault(head.layer, []).append(head.head)
        self._spans, self._bias = tuple(spans), bias

    def query(self, layer: int, query: Tensor, length: int) -> Tensor:
        """Queries stay as they are."""
        return query

    def output(self, call: Call, values: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Attend once more for the steered heads only, with the bias, and put their outputs in place."""
        chosen = self._heads.get(call.layer)
        if not chosen:
            return output
        rows, heads = call.query.shape[2], call.query.shape[1]
        keys = torch.cat([k.expand(call.query.shape[0], -1, -1, -1) for k in call.keys], dim=2)
        vals = torch.cat([v.expand(call.query.shape[0], -1, -1, -1) for v in values], dim=2)
        groups = [head // (heads // keys.shape[1]) for head in chosen]
        steered = attend(
            call.query[:, chosen],
            keys[:, groups],
            vals[:, groups],
            scaling=call.scaling,
            mask=self._biased(call.mask, rows, keys.shape[2], call.query),
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks[chosen],
        )
        out = output.clone()
        out[:, :, chosen] = steered.to(out.dtype)
        return out

    def _biased(self, mask: Tensor | None, rows: int, length: int, like: Tensor) -> Tensor:
        """Float mask [B or 1, 1, T, S]: -inf where nothing may be seen, the bias on the spans, 0 elsewhere."""
        position = torch.arange(length, device=like.device)
        if mask is None:
            mask = (position <= torch.arange(length - rows, length, device=like.device).unsqueeze(-1)).view(1, 1, rows, length)
        bias = torch.zeros(length, dtype=like.dtype, device=like.device)
        for start, stop in self._spans:
            bias[start:stop] = self._bias
        if mask.dtype != torch.bool:
            return mask + bias
        return bias.expand(mask.shape).masked_fill(~mask, torch.finfo(like.dtype).min)


@contextmanager
def steer(model: Any, heads: HeadSet, spans: Sequence[tuple[int, int]], bias: float) -> Iterator[None]:
    """Inside the block the chosen heads see the logits of `spans` raised by `bias` (natural-log units; negative lowers).

    spans: key positions [start, stop). A bias b multiplies the odds of those keys by exp(b).
    """
    with attached(model) as plan:
        plan.layout.check(heads)
        edit = Steering(heads, spans, bias)
        plan.edits.append(edit)
        try:
            yield
        finally:
            plan.edits.remove(edit)
