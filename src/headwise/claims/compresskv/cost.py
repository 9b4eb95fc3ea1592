"""What choosing costs, and what a token costs afterwards: ratios of times of one run, on random keys in the model's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from headwise.caches.groups import Group, Growing
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import View
from headwise.claims.cache_runs import Filled, ratio, seconds_per_token, wait
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadSet
from headwise.methods.compresskv.press import CompressKV
from headwise.models.model import Model

LENGTHS = (8192, 32768)  # scored
TEXTS = (2048, 8192)  # behind which a token is decoded
HELD = 205  # positions, a tenth of the shorter text
ROUNDS = 7
REPEATS = 4  # calls in a round


def measure(bench: Bench) -> Measured:
    """See the module."""
    model = bench.model
    if not model.heads.full_layers:
        raise NotTestable("needs a layer that sees the whole text; this model has none")
    torch.manual_seed(bench.seed)
    shape = model.heads.shape
    every = HeadSet.of([(i, j) for i in range(shape[0]) for j in range(shape[1])], shape)
    each = shape[1] // model.heads.kv_heads
    one = HeadSet.of([(i, j) for i in range(shape[0]) for j in range(0, shape[1], each)], shape)
    short, long = (_view(model, length) for length in LENGTHS)
    all_heads, one_head = (CompressKV(heads, budget=HELD) for heads in (every, one))
    times = _timed({
        "short": lambda: all_heads.scores(short), "long": lambda: all_heads.scores(long), "one": lambda: one_head.scores(short),
    })  # fmt: skip
    growth = tuple(round(part / 4, 4) for part in ratio(times["long"], times["short"]))
    tokens = _decoding(model)
    findings = {
        "compresskv.scoring_linear": Finding({"growth": growth}),  # type: ignore[dict-item]
        "compresskv.scoring_heads": Finding({"ratio": ratio(times["short"], times["one"]), "heads": each}),
        "compresskv.decode_flat": Finding({
            "growth": ratio(tokens["held, long"], tokens["held, short"]), "full": ratio(tokens["full, long"], tokens["full, short"]),
        }),
    }  # fmt: skip
    return Measured(findings)


@torch.no_grad()
def _timed(runs: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, list[float]]:
    """Name -> seconds of each round; runs take turns, and a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            wait(run())
            started = time.perf_counter()
            for _ in range(REPEATS):
                wait(run())
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def _view(model: Model, length: int) -> View:
    """What the first layer with full attention holds of a text of random keys."""
    layer, filled, grid = model.heads.full_layers[0], Filled(model, 0), model.heads
    query, keys, values = (filled.random(heads, count) for heads, count in ((grid.shape[1], 8), (grid.kv_heads, length), (grid.kv_heads, length)))
    positions = torch.arange(length, dtype=torch.int32, device=keys.device)[None]
    return View(layer, query, keys, values, positions, 1 / float(np.sqrt(grid.head_dim)), None, None, model)


def _decoding(model: Model) -> dict[str, list[float]]:
    """Seconds of a token behind both texts, with a tenth of the shorter held and with everything."""
    caches: dict[str, KeptCache] = {}
    for name, length in zip(("short", "long"), TEXTS, strict=True):
        filled = Filled(model, length)
        caches[f"held, {name}"] = filled.cache(lambda _, filled=filled: [growing(filled, HELD)])  # type: ignore[misc]
        caches[f"full, {name}"] = filled.cache(lambda _, filled=filled: [growing(filled, filled.length)])  # type: ignore[misc]
    return seconds_per_token(model, caches, ROUNDS)


def growing(filled: Filled, count: int) -> Group:
    """All KV heads, with `count` positions evenly spread over the text."""
    kv_heads = filled.model.heads.kv_heads
    keys, values = filled.random(kv_heads, count), filled.random(kv_heads, count)
    positions = torch.linspace(0, filled.length - 1, count, device=keys.device).to(torch.int32)[None, None]
    return Growing(None, keys, values, positions, count)
