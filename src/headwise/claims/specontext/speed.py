"""Time per token of sparse steps, of full attention, and of the bound, behind caches that are filled with random keys and values.

All variants take turns; ratios are medians over rounds of the ratio of one round, so a machine that does other things as well blurs them. They
differ from run to run. `streaming` is the bound: it costs nothing to choose.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from headwise.attention.plan import attached
from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import SparseCache, sparse_decode
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadSet
from headwise.heads.types import Heads
from headwise.methods.specontext.chooser import Distilled
from headwise.models.draft_head import DraftHead, shape_for
from headwise.models.forward import forward
from headwise.models.model import Model, describe_model, device_of

CHOOSERS = ("retrieval_heads", "refresh_every", "pages", "previous_query", "anchor_layers", "distilled")
FULL, PREALLOCATED, BOUND = "full", "preallocated", "streaming"
LONG, SHORT, BUDGET = 32768, 8192, 2048  # of the random model
OWN_LENGTH, OWN_BUDGET = 7900, 512  # of the model itself
ROUNDS, TOKENS, WARM, TOP = 5, 16, 9, 8  # some choosers read everything in the first eight steps


class RandomDraft(Distilled):
    """A draft head with random weights that has read a random text: it costs what a trained one does."""

    def fill(self, batch: int, length: int) -> None:
        """Keys of a text."""
        device = self._turning.device
        keys = torch.randn((batch, self.head.shape.kv_heads, length, self.head.shape.head_dim), device=device)
        self._layer.update(keys, keys)


class Steps:
    """Steps of a model over caches filled with random numbers.

    Args:
        model: That runs.
        budget: Positions per KV head and step.
        heads: Of `retrieval_heads`; None: some that are spread over the layers.
        batch: Requests at once.
        placement: See `sparse_decode`.
        warm: Steps in front of those that are timed.
        tokens: Steps that are timed.
    """

    def __init__(
        self, model: Model, budget: int, heads: Heads | None = None, batch: int = 1, placement: str = "device", warm: int = WARM, tokens: int = TOKENS
    ) -> None:
        self.model, self.budget, self.batch, self.placement, self.warm, self.tokens = model, budget, batch, placement, warm, tokens
        self.device = device_of(model.hf)
        self._heads = spread(model) if heads is None else heads

    def chooser(self, name: str, length: int) -> Chooser:
        """A chooser by name, for texts of a length."""
        makers: dict[str, Callable[[], Chooser]] = {
            "streaming": choosers.Streaming, "random": choosers.Random, "oracle": choosers.Oracle, "pages": choosers.Pages,
            "previous_query": choosers.PreviousQuery, "anchor_layers": choosers.AnchorLayers, "refresh_every": choosers.RefreshEvery,
            "retrieval_heads": lambda: choosers.RetrievalHeads(self._heads),
            "distilled": lambda: RandomDraft(DraftHead(shape_for(self.model, "emb+feat", 2 * length)).eval().requires_grad_(False)),
        }  # fmt: skip
        return makers[name]()

    def filled(self, cache: Any, length: int) -> Any:
        """Random keys and values in every layer with full attention."""
        grid = self.model.heads
        shape = (self.batch, grid.kv_heads, length, grid.head_dim)
        for layer in grid.full_layers:
            keys, values = (torch.randn(shape, device=self.device, dtype=self.model.hf.dtype) for _ in range(2))
            cache.update(keys, values, layer)
        return cache

    @torch.no_grad()
    def seconds(self, cache: Any, count: int) -> float:
        """Per token."""
        ids = torch.full((self.batch, 1), 7, device=self.device)
        self.wait()
        started = time.perf_counter()
        for _ in range(count):
            forward(self.model.hf, ids, cache)
        self.wait()
        return (time.perf_counter() - started) / max(1, count)

    def wait(self) -> None:
        """Until the device has done all that it was given, without which nothing is timed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def sparse(self, name: str, length: int) -> Iterator[SparseCache]:
        """A cache behind which a chooser has warmed up."""
        chooser = self.chooser(name, length)
        with sparse_decode(self.model, chooser, budget=self.budget, placement=self.placement, check=False) as cache:
            self.filled(cache, length)
            if isinstance(chooser, RandomDraft):
                chooser.fill(self.batch, length)
            self.seconds(cache, self.warm)
            yield cache

    def timed(self, name: str, length: int) -> float:
        """Seconds per token of a chooser, of transformers' own cache (`full`), or of one with room (`preallocated`)."""
        if name == FULL:
            return self.seconds(self.filled(DynamicCache(config=self.model.hf.config), length), self.tokens)
        if name == PREALLOCATED:
            with attached(self.model):
                return self.seconds(self.filled(roomy_cache(self.model.hf.config), length), self.tokens)
        with self.sparse(name, length) as cache:
            return self.seconds(cache, self.tokens)


def spread(model: Model) -> HeadSet:
    """Some heads in the upper half of the layers, which cost what retrieval heads do."""
    layers, count = model.heads.shape
    full = sorted(model.heads.full_layers)
    chosen = [(min((layer for layer in full if layer >= layers // 2 + i // 2), default=full[-1]), (3 * i) % count) for i in range(min(TOP, layers))]
    return HeadSet.of(chosen, model.heads.shape)


def random_model(longest: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """A Llama of 8 layers, 512 wide, with 8 heads and 4 KV heads."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=2 * longest, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(LlamaForCausalLM(config).to(device, dtype).eval())


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def fastest(times: dict[str, list[float]]) -> str:
    """The chooser with the least median time, the bound and full attention left out."""
    own = {name: statistics.median(each) for name, each in times.items() if name not in (FULL, PREALLOCATED, BOUND)}
    return min(own, key=lambda name: own[name])


def taken(bench: Bench, part: str, steps: Steps, variants: Sequence[tuple[str, int]]) -> dict[tuple[str, int], list[float]]:
    """Times of all variants (name, length), round by round; the first round warms up. Finished rounds are kept."""
    directory = bench.cells(part, describe_model(steps.model) | {"budget": steps.budget, "variants": list(variants)})
    rounds = []
    for turn in range(ROUNDS + 1):
        kept = directory.load(f"round-{turn}")
        if kept is None:
            kept = {"seconds": np.array([steps.timed(*variant) for variant in variants])}, []
            directory.save(f"round-{turn}", *kept)
        rounds.append(kept[0]["seconds"].tolist())
        bench.report(turn + 1, ROUNDS + 1, f"{part}, rounds")
    return {variant: [row[place] for row in rounds[1:]] for place, variant in enumerate(variants)}


def at(times: dict[tuple[str, int], list[float]], length: int) -> dict[str, list[float]]:
    """Those of one length."""
    return {name: each for (name, own), each in times.items() if own == length}


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What pages show of each variant."""
    shown = {}
    for name, own in times.items():
        pairs = {"full / it": FULL, "preallocated / it": PREALLOCATED, "bound / it": BOUND}
        shown[name] = {told: round(ratio(times[other], own), 3) for told, other in pairs.items()}
    return shown


def measure(bench: Bench) -> Measured:
    """The random model at two lengths, and the model itself."""
    every = (FULL, PREALLOCATED, BOUND, *CHOOSERS)
    steps = Steps(random_model(LONG), BUDGET)
    times = taken(bench, "random", steps, [*((name, LONG) for name in every), *((name, SHORT) for name in every if name not in (FULL, BOUND))])
    long, short = at(times, LONG), at(times, SHORT)
    best = fastest(long)
    numbers = {"vs_full": ratio(long[FULL], long[best]), "bound": ratio(long[FULL], long[BOUND])}
    growth = {name: ratio(long[name], short[name]) for name in short}
    details: dict[str, Any] = {"random model": ratios(long), "time at 32,768 over time at 8,192": {n: round(g, 3) for n, g in growth.items()}}
    findings = {
        "specontext.speed_32k": Finding(_few(numbers), note=f"fastest: {best}"),
        "specontext.speed_flat": Finding(_few({"growth": growth[best], "preallocated": growth[PREALLOCATED]}), note=f"fastest: {best}"),
    }
    try:
        own = at(taken(bench, "own", Steps(_long_enough(bench.model), OWN_BUDGET), [(name, OWN_LENGTH) for name in every]), OWN_LENGTH)
    except NotTestable as why:
        return Measured(findings | {"specontext.speed_smollm2": Finding.none(str(why))}, details)
    shares = {name: ratio(own[BOUND], own[name]) for name in CHOOSERS}
    best = max(shares, key=lambda name: shares[name])
    numbers = {"share_of_bound": shares[best], "bound": ratio(own[FULL], own[BOUND])}
    findings["specontext.speed_smollm2"] = Finding(_few(numbers), note=f"fastest: {best}")
    return Measured(findings, details | {"the model itself": ratios(own)})


def _few(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in numbers.items()}


def _long_enough(model: Model) -> Model:
    if not model.heads.full_layers:
        raise NotTestable("needs a layer with full attention: there is nothing to choose in the others")
    least = OWN_LENGTH + WARM + TOKENS
    if model.positions is not None and model.positions < least:
        raise NotTestable(f"needs {least} positions; the model has {model.positions}")
    return model
