"""Decoding over a compressed cache against transformers' own caches, what scoring adds to a prefill, and bytes against the formula.

A random Llama of 8 layers, 512 wide, 8 heads and 4 KV heads, or a real model (--model). For decoding, caches are filled directly with
random keys and values, so that no long prompt has to be read; the prefill is measured at its own, smaller length. All variants take turns.
Ratios are medians over repeats of the ratio of one round; `spread` holds the smallest and the largest of them.

`bound_vs_...`: what no cache of this share can pass. `nothing` holds one position per KV head, so its step is all that is not attention
over the text: F. A step over the whole text takes T, so a cache that holds a share s takes at least F + s (T - F), if attention costs what
its positions do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from common import hardware, peak_memory, show
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from headwise.attention.plan import attached
from headwise.caches.controls import Full
from headwise.caches.groups import Arrival, Growing, Sliding, Window
from headwise.caches.kept_cache import KeptCache, compress
from headwise.evaluation.reading import size_of
from headwise.heads import HeadScores
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.snapkv.press import SnapKV
from headwise.models.load import load
from headwise.models.model import as_model
from tests.helpers import with_cache

WINDOW = Window(64, 256)
PARTS = ("decode", "exclusive", "flat", "prefill")
Times = dict[str, list[float]]


def sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--length", type=int, default=32768, help="tokens in front of decoding")
    parser.add_argument("--short", type=int, default=8192, help="the shorter length of `flat`, and of the prefill")
    parser.add_argument("--share", type=float, default=0.1, help="budget as a share of the text")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded per round")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--model", default="", help="a real model in place of the random one: a name such as smollm2, or a folder"
    )
    return parser.parse_args()


class Bench:
    """A model, and caches that are filled with random numbers."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.chosen, self.dtype = chosen, getattr(torch, chosen.dtype)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load(chosen.model, self.device, chosen.dtype).hf if chosen.model else self.random_model()
        grid = as_model(self.model).heads
        (self.layers, self.heads), self.kv, self.dim = grid.shape, grid.kv_heads, grid.head_dim
        self.one = torch.full((1, 1), 7, device=self.device)

    def random_model(self) -> Any:
        config = LlamaConfig(
            vocab_size=8192, hidden_size=self.chosen.width, intermediate_size=11 * self.chosen.width // 4,
            num_hidden_layers=self.chosen.layers, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2 * self.chosen.length,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(self.device, self.dtype).eval()

    def random(self, heads: int, length: int) -> torch.Tensor:
        return torch.randn(1, heads, length, self.dim, device=self.device, dtype=self.dtype)

    def filled(self, cache: Any, length: int) -> Any:
        """A cache of transformers with `length` positions in every layer."""
        for layer in range(self.layers):
            cache.update(self.random(self.kv, length), self.random(self.kv, length), layer)
        return cache

    def kept(self, length: int, groups: Callable[[int], list[Any]]) -> KeptCache:
        """A compressed cache that has seen `length` tokens. groups: layer -> what it holds."""
        cache = KeptCache(self.model, Full())
        for i, layer in cache.kept_layers.items():
            layer.groups, layer.seen, layer.is_initialized = groups(i), length, True
        return cache

    def growing(self, length: int, count: int, heads: list[int] | None = None) -> Growing:
        """Keeps `count` positions, evenly spread over the text."""
        positions = torch.linspace(0, length - 1, count, device=self.device).to(torch.int32)[None, None]
        which, n = (None, self.kv) if heads is None else (torch.tensor(heads, device=self.device), len(heads))
        return Growing(which, self.random(n, count), self.random(n, count), positions, count)

    def sliding(self, length: int, heads: list[int] | None = None) -> Sliding:
        """Keeps the window of a text of `length` tokens."""
        which, n = (None, self.kv) if heads is None else (torch.tensor(heads, device=self.device), len(heads))
        group = Sliding.empty(which, self.random(n, 1), self.random(n, 1), WINDOW, exact=False)
        for start, stop in ((0, WINDOW.sinks), (length - WINDOW.recent, length)):
            group.take(self.random(n, stop - start), self.random(n, stop - start), Arrival(start, stop - start))
        return group

    def ours(self) -> AbstractContextManager[Any]:
        return compress(self.model, Full())

    @torch.no_grad()
    def decode(self, cache: Any) -> None:
        for _ in range(self.chosen.tokens):
            self.model(input_ids=self.one, **with_cache(cache), use_cache=True)

    def back(self, cache: Any) -> None:
        """Take the round's tokens away again, where a cache can."""
        if isinstance(cache, StaticCache):
            for layer in cache.layers:
                layer.cumulative_length -= self.chosen.tokens
        elif not isinstance(cache, KeptCache) or all(
            isinstance(group, Growing) for layer in cache.kept_layers.values() for group in layer.groups
        ):
            cache.crop(-self.chosen.tokens)

    def rounds(
        self, runs: Mapping[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any], Callable[[], Any]]]
    ) -> Times:
        """Seconds of each run in each round; runs take turns. runs: name -> (block, what is timed, what comes after)."""
        times: Times = {name: [] for name in runs}
        for turn in range(self.chosen.repeats + 1):  # the first round warms up
            for name, (block, run, after) in runs.items():
                with block():
                    self.wait()
                    started = time.perf_counter()
                    run()
                    self.wait()
                    taken = time.perf_counter() - started
                    after()
                if turn:
                    times[name].append(taken)
        return times

    def decoded(self, caches: Mapping[str, Any]) -> Times:
        """Seconds per token of each cache."""
        times = self.rounds(
            {
                name: (
                    self.ours if isinstance(cache, KeptCache) else nullcontext,
                    lambda cache=cache: self.decode(cache),
                    lambda cache=cache: self.back(cache),
                )
                for name, cache in caches.items()
            }
        )
        return {name: [seconds / self.chosen.tokens for seconds in found] for name, found in times.items()}

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def ratio(above: list[float], below: list[float]) -> tuple[float, list[float]]:
    """Median, and smallest and largest, of the ratios of single rounds."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(found), [min(found), max(found)]


def milliseconds(times: Times) -> dict[str, float]:
    return {name: 1000 * statistics.median(found) for name, found in times.items()}


def decode(bench: Bench) -> dict[str, Any]:
    """A share of the text against all of it."""
    chosen = bench.chosen
    count = round(chosen.share * chosen.length)
    room = chosen.length + 2 * chosen.tokens
    caches = {
        "dynamic": bench.filled(DynamicCache(config=bench.model.config), chosen.length),
        "static": bench.filled(StaticCache(config=bench.model.config, max_cache_len=room), chosen.length),
        "full": bench.kept(chosen.length, lambda _: [bench.growing(chosen.length, chosen.length)]),
        "kept": bench.kept(chosen.length, lambda _: [bench.growing(chosen.length, count)]),
        "nothing": bench.kept(chosen.length, lambda _: [bench.growing(chosen.length, 1)]),
    }
    times = bench.decoded(caches)
    result: dict[str, Any] = {"decode_ms": milliseconds(times), "spread": {}}
    for name in ("dynamic", "static", "full"):
        result[f"decode_speedup_vs_{name}"], result["spread"][f"decode_speedup_vs_{name}"] = ratio(times[name], times["kept"])
        whole, rest = (result["decode_ms"][one] for one in (name, "nothing"))
        result[f"bound_vs_{name}"] = whole / (rest + chosen.share * (whole - rest))
        result[f"attention_share_of_{name}"] = 1 - rest / whole
    size = size_of(caches["kept"])
    return result | {"bytes_vs_formula": size.nbytes / size.formula, "bytes_vs_full": size.nbytes / size.full}


def exclusive(bench: Bench) -> dict[str, Any]:
    """Half the KV heads of every layer stream, or all of every other layer: equal bytes, one group per layer or two."""
    length, half = bench.chosen.length, bench.kv // 2
    if bench.kv % 2:
        return {"spread": {}}  # three KV heads have no half
    first, second = list(range(half)), list(range(half, bench.kv))
    caches = {
        "mixed": bench.kept(length, lambda _: [bench.growing(length, length, first), bench.sliding(length, second)]),
        "exclusive": bench.kept(length, lambda i: [bench.sliding(length) if i % 2 else bench.growing(length, length)]),
    }
    times = bench.decoded(caches)
    speedup, spread = ratio(times["mixed"], times["exclusive"])
    return {"exclusive_ms": milliseconds(times), "exclusive_vs_mixed": speedup, "spread": {"exclusive_vs_mixed": spread}}


def flat(bench: Bench) -> dict[str, Any]:
    """The same number of positions kept of a shorter and of a longer text."""
    chosen = bench.chosen
    count = round(chosen.share * chosen.short)
    caches = {
        str(length): bench.kept(length, lambda _, length=length: [bench.growing(length, count)])
        for length in (chosen.short, chosen.length)
    }
    times = bench.decoded(caches)
    growth, spread = ratio(times[str(chosen.length)], times[str(chosen.short)])
    return {"flat": milliseconds(times) | {"ratio": growth, "positions": count}, "spread": {"flat": spread}}


def prefill(bench: Bench) -> dict[str, Any]:
    """A prompt read with our attention into a plain cache, and the same prompt scored and cut down by a method."""
    chosen = bench.chosen
    ids = torch.randint(2, 8000, (1, chosen.short), generator=torch.Generator().manual_seed(1)).to(bench.device)
    scores = HeadScores(np.random.default_rng(0).random((bench.layers, bench.heads)), "random")
    methods = {
        "snapkv": SnapKV(compression_ratio=1 - chosen.share),
        "compresskv": CompressKV(scores, compression_ratio=1 - chosen.share),
    }
    made: dict[str, KeptCache] = {}

    @torch.no_grad()
    def plain() -> None:
        bench.model(input_ids=ids, **with_cache(DynamicCache(config=bench.model.config)), use_cache=True, logits_to_keep=1)

    @contextmanager
    def block(name: str) -> Iterator[None]:
        with compress(bench.model, methods[name]) as made[name]:
            yield

    nothing: Callable[[], None] = lambda: None  # noqa: E731
    runs = {"plain": (lambda: attached(bench.model), plain, nothing)}
    runs |= {
        name: (lambda name=name: block(name), lambda name=name: made[name].prefill(ids), nothing)  # type: ignore[misc]
        for name in methods
    }
    times = bench.rounds(runs)
    result: dict[str, Any] = {"prefill_ms": milliseconds(times), "prefill_overhead": {}, "spread": {"prefill_overhead": {}}}
    for name in methods:
        found, spread = ratio(times[name], times["plain"])
        result["prefill_overhead"][name] = found - 1
        result["spread"]["prefill_overhead"][name] = [bound - 1 for bound in spread]
    sizes_of = {name: size_of(cache) for name, cache in made.items()}
    return result | {"prefill_bytes_vs_formula": {name: size.nbytes / size.formula for name, size in sizes_of.items()}}


def main() -> None:
    chosen = sizes()
    bench = Bench(chosen)
    result: dict[str, Any] = {"spread": {}}
    for name, part in (("decode", decode), ("exclusive", exclusive), ("flat", flat), ("prefill", prefill)):
        if name in chosen.only.split(","):
            found = part(bench)
            result["spread"] |= found.pop("spread")
            result |= found
    given = {
        name: getattr(chosen, name)
        for name in ("repeats", "length", "short", "share", "tokens", "layers", "width", "dtype", "model")
    }
    show(result | given | {"peak_memory": peak_memory(), "hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
