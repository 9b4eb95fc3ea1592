"""How much faster whole layers decode than mixed ones that hold as many positions: ratios of times of one run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.caches.groups import Arrival, Group, Growing, Sliding, Window
from headwise.claims.cache_runs import Filled, ratio, seconds_per_token
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable

SHORT, LONG = 2048, 32768
WINDOW = Window(64, 256)
ROUNDS = 7


def measure(bench: Bench) -> Measured:
    """See the module."""
    model = bench.model
    if model.heads.kv_heads < 2:
        raise NotTestable("needs at least two KV heads; this model has one")
    torch.manual_seed(bench.seed)
    findings = {}
    for name, length in (("short", SHORT), ("long", LONG)):
        filled = Filled(model, length)
        half = (model.heads.kv_heads + 1) // 2  # of an odd number the larger part streams in one layer, the smaller in the next
        first, second = range(half), range(half, model.heads.kv_heads)
        caches = {
            "mixed": filled.cache(lambda i, f=filled, a=first, b=second: [growing(f, (a, b)[i % 2]), sliding(f, (b, a)[i % 2])]),  # type: ignore[misc]
            "whole": filled.cache(lambda i, f=filled: [sliding(f) if i % 2 else growing(f)]),  # type: ignore[misc]
        }
        times = seconds_per_token(model, caches, ROUNDS)
        more = 1000 * (sum(times["mixed"]) - sum(times["whole"])) / ROUNDS
        findings[f"zigzag.exclusive_time_{name}"] = Finding({"speed_up": ratio(times["mixed"], times["whole"]), "extra_ms": round(more, 4)})
    return Measured(findings)


def growing(filled: Filled, heads: Sequence[int] | None = None) -> Group:
    """Some KV heads, or all, that hold the whole text."""
    which, count = _chosen(filled, heads)
    keys, values = filled.random(count, filled.length), filled.random(count, filled.length)
    positions = torch.arange(filled.length, dtype=torch.int32, device=keys.device)[None, None]
    return Growing(which, keys, values, positions, filled.length)


def sliding(filled: Filled, heads: Sequence[int] | None = None) -> Group:
    """Some KV heads, or all, that hold the window at the text's end."""
    which, count = _chosen(filled, heads)
    group = Sliding.empty(which, filled.random(count, 1), filled.random(count, 1), WINDOW, exact=False)
    for start, stop in ((0, WINDOW.sinks), (filled.length - WINDOW.recent, filled.length)):
        group.take(filled.random(count, stop - start), filled.random(count, stop - start), Arrival(start, stop - start))
    return group


def _chosen(filled: Filled, heads: Sequence[int] | None) -> tuple[torch.Tensor | None, int]:
    if heads is None:
        return None, filled.model.heads.kv_heads
    return torch.tensor(list(heads), device=filled.random(1, 1).device), len(heads)
