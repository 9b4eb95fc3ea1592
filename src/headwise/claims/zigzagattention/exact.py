"""What must hold exactly: where nothing may be lost, streaming changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from headwise.attention.plan import attached
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import PREFILLS, Keep, View
from headwise.caches.shared import full_cache
from headwise.claims.cache_runs import Runs
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.methods.duo.press import DuoAttention
from headwise.methods.zigzag.press import ZigzagAttention
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model

STOPS = (0, 64, 88, *range(89, 97))  # of a prompt, a block of new tokens, and single ones
CHUNK = 24
SINKS = 8
Logits = torch.Tensor


class Turned:
    """Everything is kept, the KV heads of each layer in two groups in reversed order."""

    prefill = "dense"

    def check(self, model: Model) -> None:
        """Fits all models."""

    def streams(self, layer: int, model: Model) -> None:
        """No windows."""

    def kept(self, view: View) -> Sequence[Keep]:
        """All positions."""
        order = range(view.model.heads.kv_heads)[::-1]
        return [Keep(tuple(part)) for part in (order[::2], order[1::2]) if part]


def measure(bench: Bench) -> Measured:
    """See the module."""
    runs = Runs(bench)
    model, length = runs.model, STOPS[-1]
    room = length - len(runs.encoder.bos)
    ids = token_tensor(model.hf, [*runs.encoder.bos, *runs.haystack.window(room, (bench.seed, 64), (0.6, 1.0)).ids])
    with torch.no_grad(), attached(model.hf):
        plain = passes(model, ids, full_cache(model.hf))
        rounding = apart(forward(model.hf, ids, full_cache(model.hf)).logits, plain)
    pattern = np.zeros((model.heads.shape[0], model.heads.kv_heads), dtype=bool)
    pattern[::2, ::2] = pattern[1::2, 1::2] = True
    layers = model.heads.full_layers[::2]

    def furthest(methods: Sequence[Any]) -> float:
        return max(apart(compressed(model, ids, method), plain) for method in methods)

    def both(heads: Any, chosen: Sequence[int], sinks: int, recent: int) -> list[Any]:
        made: list[Any] = [DuoAttention(heads, sinks=sinks, recent=recent, prefill=prefill) for prefill in PREFILLS]
        return made + [ZigzagAttention(chosen, sinks=sinks, recent=recent, prefill=prefill) for prefill in PREFILLS]

    everything = np.ones_like(pattern)
    found = {
        "exact_inside_window": furthest(both(pattern, layers, SINKS, length - SINKS)),
        "exact_keep_all": furthest(both(everything, model.heads.full_layers, 1, 2)),
        "exact_groups": furthest([Turned()]),
        "exact_chunked": apart(chunked(model, ids, CHUNK), chunked(model, ids, None)),
    }
    loses = furthest(both(pattern, layers, 2, 4))  # the measure can tell
    findings = {
        f"zigzag.{name}": Finding({"difference": value, "rounding": rounding, "over_rounding": round(value / max(rounding, 1e-12), 2)})
        for name, value in found.items()
    }
    return Measured(findings, {"windows of 2 and 4 tokens": loses})


def apart(one: Logits, other: Logits) -> float:
    """Length of the difference as a share of the length of the logits, at the position where it is largest."""
    return float(f"{float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max()):.3g}")


@torch.no_grad()
def passes(model: Model, ids: torch.Tensor, cache: Any) -> Logits:
    """Logits of a prompt, a block of new tokens and single tokens over a cache."""
    return torch.cat([forward(model.hf, ids[:, start:stop], cache).logits for start, stop in pairwise(STOPS)], dim=1)


def compressed(model: Model, ids: torch.Tensor, method: Any) -> Logits:
    """The same over a compressed cache."""
    with compress(model.hf, method) as cache:
        return passes(model, ids, cache)


def chunked(model: Model, ids: torch.Tensor, chunk: int | None) -> Logits:
    """Logits behind the text, read in chunks into whole layers."""
    made: Callable[[], Any] = lambda: ZigzagAttention(model.heads.full_layers, sinks=1, recent=2, prefill="chunked")  # noqa: E731
    cache: KeptCache
    with compress(model.hf, made()) as cache:
        return cache.prefill(ids, chunk=chunk)
