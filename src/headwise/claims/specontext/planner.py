"""The plan of memory against every plan that is possible, against algorithm 1 as printed, and the simulated time of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model
from headwise.models.placement import weight_bytes
from headwise.runtime.memory_plan import LayerShape, Sizes, device_bytes, fixed_bytes, layers_on_host, moved_bytes, thresholds

CASES, FEWER = 500, 100
BUDGETS = (256, 512, 1024, 2048, 4096)
RAMP_REQUESTS, RAMP_BUDGET, RAMP_FROM = 8, 2048, 4  # all fits up to 4 budgets
DEVICE, HOST, STAYS = 2e12, 25e9, 0.8  # bytes per second; share of the positions that stay from step to step


def sizes_of(model: Model, budget: int) -> Sizes:
    """The shape of a model as the paper's formulas take it: all layers with full attention, a layer of the draft, repeated KV heads."""
    heads, dtype = model.heads, model.hf.dtype
    shape = LayerShape(heads.kv_heads, heads.head_dim, heads.head_dim)
    weights, alpha = weight_bytes(model.hf, dtype), heads.shape[1] // heads.kv_heads
    return Sizes(weights, (shape,) * heads.shape[0], dtype.itemsize, budget, draft_layers=1, alpha=alpha)


def equation_7(sizes: Sizes, lengths: Sequence[int], on_host: int) -> float:
    """Bytes on the device, written out from the paper; the constant 4 is two tables of 16 bits."""
    width, layers = sizes.layers[0].kv_heads * sizes.layers[0].key_width, len(sizes.layers)
    held = sum((layers - on_host + 1 + sizes.alpha) * length + on_host * sizes.budget for length in lengths)
    return 1.3 * sizes.weights + 2 * sizes.item_size * held * width


def printed_threshold(sizes: Sizes, memory: int, requests: int, on_host: int) -> int:
    """Algorithm 1 as printed: the term of the layers on the host counts one byte per number in place of keys and values."""
    heads = requests * sizes.layers[0].kv_heads * sizes.layers[0].key_width
    room = memory - fixed_bytes(sizes) - on_host * sizes.budget * heads
    return math.floor(room / (2 * sizes.item_size * heads * (len(sizes.layers) + 1 + sizes.alpha - on_host)))


def best(sizes: Sizes, memory: int, lengths: Sequence[int]) -> int | None:
    """The fewest layers on the host that fit, by trying all; None if none does."""
    every = range(len(sizes.layers) + 1)
    return next((count for count in every if equation_7(sizes, lengths, count) <= memory), None)


def planned(sizes: Sizes, memory: int, lengths: Sequence[int]) -> int | None:
    """The plan's answer."""
    try:
        return layers_on_host(sizes, memory, lengths)
    except HeadwiseError:
        return None


def plans(bench: Bench, sizes: Sizes) -> Finding:
    """Random cases, from memories that hold nothing to memories that hold everything."""
    rng, equal, between, cases = np.random.default_rng([bench.seed, 61]), 0, 0, bench.pick(CASES, FEWER)
    for _ in range(cases):
        own = replace(sizes, budget=int(rng.choice(BUDGETS)))
        lengths = [int(own.budget * rng.uniform(1.01, 16)) for _ in range(rng.integers(1, 33))]
        least, most = (device_bytes(own, lengths, count) for count in (len(own.layers), 0))
        memory = int(rng.uniform(least - 0.1 * (most - least), most + 0.1 * (most - least)))
        wanted = best(own, memory, lengths)
        equal += planned(own, memory, lengths) == wanted
        between += wanted is not None and 0 < wanted < len(own.layers)
    return Finding({"share_equal": equal / cases, "share_between": between / cases})


def printed(bench: Bench, sizes: Sizes) -> Finding:
    """Thresholds of memories that hold some random length in full."""
    rng, counted = np.random.default_rng([bench.seed, 62]), {"printed": 0, "ours": 0, "all": 0}
    for _ in range(bench.pick(CASES, FEWER)):
        own, requests = replace(sizes, budget=int(rng.choice(BUDGETS))), int(rng.integers(1, 33))
        memory = device_bytes(own, [int(own.budget * rng.uniform(1.01, 16))] * requests)
        ours = thresholds(own, memory, requests)
        for on_host in range(1, len(own.layers) + 1):
            longest = ours[on_host]
            counted["all"] += 1
            counted["printed"] += equation_7(own, [printed_threshold(own, memory, requests, on_host)] * requests, on_host) > memory + 1
            counted["ours"] += longest is not None and equation_7(own, [longest] * requests, on_host) > memory + 1
    share = {name: count / counted["all"] for name, count in counted.items()}
    return Finding({"share_too_long": share["printed"], "share_too_long_corrected": share["ours"]})


def step_seconds(sizes: Sizes, lengths: Sequence[int], on_host: int) -> float:
    """Simulated time of a step: weights, chosen positions and the draft's own keys from the device, what moves from the host."""
    numbers = sizes.layers[0].numbers * sizes.item_size
    chosen = sum(min(length, sizes.budget) for length in lengths) * len(sizes.layers) * numbers
    own = sum(lengths) * numbers * sizes.draft_layers / 2
    return (sizes.weights + chosen + own) / DEVICE + moved_bytes(sizes, lengths, on_host, STAYS) / HOST


def ramp(sizes: Sizes) -> tuple[Finding, dict[str, list[float]]]:
    """The largest rise from one length to the next, of layers that leave one by one and of all at once."""
    own = replace(sizes, budget=RAMP_BUDGET)
    memory = device_bytes(own, [RAMP_FROM * RAMP_BUDGET] * RAMP_REQUESTS)
    limits = [limit for limit in thresholds(own, memory, RAMP_REQUESTS)[:-1] if limit is not None]
    lengths = sorted({length for limit in limits for length in (limit, limit + 1)})
    times: dict[str, list[float]] = {"one by one": [], "all at once": []}
    for length in lengths:
        requests = [length] * RAMP_REQUESTS
        count = layers_on_host(own, memory, requests)
        times["one by one"].append(step_seconds(own, requests, count))
        times["all at once"].append(step_seconds(own, requests, len(own.layers) if count else 0))
    jumps = {name: float(np.diff(each).max() / (max(each) - min(each))) for name, each in times.items()}
    numbers = {"jump_ratio": jumps["one by one"] / jumps["all at once"], "jump_of_all": jumps["all at once"], "jump": jumps["one by one"]}
    table: dict[str, list[float]] = {"tokens": list(lengths)}
    table |= {f"simulated ms per step, {name}": [round(1000 * value, 4) for value in each] for name, each in times.items()}
    return Finding({name: round(value, 5) for name, value in numbers.items()}), table


def measure(bench: Bench) -> Measured:
    """The three claims for the model's shape."""
    sizes = sizes_of(bench.model, RAMP_BUDGET)
    found, table = ramp(sizes)
    claims = {"planner_best": plans(bench, sizes), "planner_printed": printed(bench, sizes), "planner_ramp": found}
    return Measured({f"specontext.{name}": one for name, one in claims.items()}, {"ramp": table})
