"""What the claims about smaller caches share: texts, heads and gates, questions of the registered tables, and statistics over contexts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from headwise.attention.plan import attached
from headwise.caches.controls import Full
from headwise.caches.groups import Group
from headwise.caches.kept_cache import KeptCache
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.intervals import interval
from headwise.evaluation.compression import Candidate, measure_compression
from headwise.evaluation.contexts import Context
from headwise.heads import HeadScores
from headwise.heads.errors import HeadwiseError
from headwise.methods.compresskv import semantic
from headwise.methods.compresskv.options import Semantic
from headwise.methods.copy import run as copying
from headwise.methods.copy.options import Copy
from headwise.methods.duo import gates as searching
from headwise.methods.duo.options import Gates
from headwise.methods.duo.prompts import LabelledText
from headwise.models.forward import forward
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, even_depths
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.prompts.prompt import Prompt
from headwise.runtime.rundir import RunDirectory
from headwise.stats.paired import sign_flip_test

PARTS = {"detect": (0.0, 0.6), "test": (0.6, 1.0)}  # of the novels, and the names of the needles' two halves
DRAWS = 3  # seeds of the registered contexts: 0, 1, 2
ANSWERED = "needle questions that the model answers"
LEAST, ROOM = 256, 128  # tokens of the shortest context, and of what comes behind it
SAMPLES = 1000  # bootstrap samples of a statistic that is no mean
Ends = tuple[float, float, float]
Row = dict[str, Any]
Values = np.ndarray


# Statistics


def resampled(statistic: Callable[..., float], *columns: Values) -> Ends:
    """A statistic of paired columns with its 95 % bootstrap interval over their rows; samples on which it is not defined are left out."""
    rng, rows = np.random.default_rng(0), len(columns[0])
    found = [statistic(*(column[chosen] for column in columns)) for chosen in rng.integers(rows, size=(SAMPLES, rows))]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return round(float(statistic(*columns)), 4), round(float(low), 4), round(float(high), 4)


class Test(NamedTuple):
    """A paired difference over contexts.

    Attributes:
        ends: Mean and 95 % interval.
        p: Two-sided p-value of sign flips.
    """

    ends: Ends
    p: float


def compared(one: Values, other: Values) -> Test:
    """One - other, by context."""
    return Test(interval(one - other), sign_flip_test(one - other))


def smallest(tests: Sequence[Test]) -> Test:
    """The smallest difference, with the largest p: what holds for it holds for all of them."""
    return Test(min(tests, key=lambda test: test.ends[0]).ends, max(test.p for test in tests))


def largest(tests: Sequence[Test]) -> Test:
    """The largest difference, with the largest p."""
    return Test(max(tests, key=lambda test: test.ends[0]).ends, max(test.p for test in tests))


# Finished parts


@contextmanager
def needed(what: str) -> Iterator[None]:
    """What a model cannot do is a reason for which its claims cannot be tested."""
    try:
        yield
    except NotTestable:
        raise
    except HeadwiseError as why:
        raise NotTestable(f"needs {what}: {why}") from why


def remembered(cells: RunDirectory, key: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """Rows of a finished cell, or measured now; read back in both cases, so that a killed run ends with the same bytes."""
    found = cells.load(key)
    if found is None:
        cells.save(key, {}, measure())
        found = cells.load(key)
    return found[1] if found else []


class Needles(NamedTuple):
    """Sizes of needle questions.

    Attributes:
        length: Tokens of a context.
        depths: At which heads are found, evenly spread from 0 to 1.
        found_on: Detection needles.
        items: Test contexts of a seed.
        seeds: Of windows of text.
    """

    length: int
    depths: int
    found_on: int
    items: int
    seeds: int


class Runs:
    """A model, its texts, and the heads found with them.

    Attributes:
        bench: What the measurement was given.
        model: The model.
        sizes: Of needle questions.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.model = bench, bench.model
        if not self.model.heads.full_layers:
            raise NotTestable("needs a layer that sees the whole text; this model has none")
        length, depths, items, seeds = (1024, 5, 12, 1) if bench.real else (384, 6, 10, 3)
        most = (self.model.positions or 10**9) - ROOM
        whole, quick = Needles(min(length, most), depths, 16, items, seeds), Needles(min(384, most), 3, 4, 3, 1)
        self.sizes: Needles = bench.pick(whole, quick)
        if most < LEAST:
            raise NotTestable(f"needs {LEAST + ROOM} positions; this model has {self.model.positions}")
        self._heads: dict[tuple[str, int], HeadScores] = {}

    @cached_property
    def encoder(self) -> PieceEncoder:
        """Of the model's tokenizer."""
        return PieceEncoder(self.model.tokenizer)

    @cached_property
    def haystack(self) -> Haystack:
        """The bundled novels."""
        return Haystack(bundled_texts(), self.encoder)

    def cells(self, part: str, **about: Any) -> RunDirectory:
        """Where a part keeps its finished cells; about: all that decides it beside the model."""
        return self.bench.cells(part, {"about": describe_model(self.model) | about})

    def needles(self, split: str, depths: tuple[float, ...], seed: int) -> Task:
        """Needle questions of a split in its part of the novels."""
        needles = bundled_needles(split)[: self.sizes.found_on if split == "detect" else None]
        grid = GridOptions((self.sizes.length,), depths, part=PARTS[split], seed=self.bench.seed + seed)
        return Task(needles, self.haystack, NeedleComposer(self.encoder), grid)

    def heads(self, score: str, seed: int = 0) -> HeadScores:
        """`copy` or `semantic` scores from the detection needles; seed: of the windows of text around them."""
        if (score, seed) not in self._heads:
            task = self.needles("detect", even_depths(self.sizes.depths), seed)
            found = self._copy(task) if score == "copy" else self.semantic(task, Semantic(min_runs=self.bench.pick(30, 1)))
            self._heads[score, seed] = found
        return self._heads[score, seed]

    def _copy(self, task: Task) -> HeadScores:
        options = Copy()
        cells = self.bench.shared_cells("copy", copying.describe_run(self.model, task, options))
        with needed(ANSWERED):
            return copying.copy_scores(self.model, task, options, cells, self.bench.report)

    def semantic(self, task: Task, options: Semantic) -> HeadScores:
        """Semantic scores from a task."""
        cells = self.bench.shared_cells("semantic", semantic.describe_run(self.model, task, options))
        with needed(ANSWERED):
            return semantic.semantic_scores(self.model, task, options, cells, self.bench.report)

    def gates(self, texts: Sequence[LabelledText], options: Gates) -> HeadScores:
        """Gates from texts with pass-keys."""
        cells = self.bench.shared_cells("gates", searching.describe_run(self.model, texts, options))
        with needed("pass-keys that the model answers"):
            return searching.gate_scores(self.model, texts, options, self.bench.report, cells)

    def prompts(self, split: str, seed: int, count: int | None = None) -> list[Prompt]:
        """Needle questions in windows of their own, at depths drawn from 0.1 to 0.9."""
        needles, seed, found = bundled_needles(split), self.bench.seed + seed, []
        rng, composer = np.random.default_rng([seed, 41]), NeedleComposer(self.encoder)
        for number in range(count or self.sizes.items):
            needle = needles[number % len(needles)]
            room = self.sizes.length - composer.context_cost(needle)
            window = self.haystack.window(room, (seed, 42, number), PARTS[split])
            found.append(composer.compose(window, needle, float(rng.uniform(0.1, 0.9))))
        return found


# The registered tables


class Tables:
    """Values of every context by task, length, place of the question, method and budget."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.cells: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            self.cells.setdefault(tuple(row[name] for name in ("task", "length", "question", "method", "budget")), []).append(row)

    def values(self, task: str, length: int, place: str, method: str, budget: float | None, name: str = "exact") -> Values:
        """One value per context, in the order in which they were drawn."""
        return np.array([row[name] for row in self.cells[task, length, place, method, budget]], dtype=np.float64)

    def full(self, task: str, length: int, place: str = "outside") -> Ends:
        """What the full cache answers."""
        return interval(self.values(task, length, place, "full", None))

    def rows(self) -> list[Row]:
        """One row per cell: exact answers with their interval, the difference to the full cache, survival, and the share of bytes held."""
        found = []
        for (task, length, place, method, budget), rows in self.cells.items():
            exact = np.array([row["exact"] for row in rows], dtype=np.float64)
            lost = exact - self.values(task, length, place, "full", None)
            survival = [row["survival"] for row in rows if row["survival"] is not None]
            about = {"task": task, "length": length, "question": place, "method": method, "budget": budget, "contexts": len(rows)}
            held = float(np.mean([row["bytes"] / row["bytes_full"] for row in rows]))
            found.append(about | {
                "exact": interval(exact), "minus_full": interval(lost), "held": round(held, 4),
                "survival": round(float(np.mean(survival)), 4) if survival else None,
            })  # fmt: skip
        return found


def table_rows(
    runs: Runs, task: str, length: int, draw: Callable[[int], list[Context]], candidates: Callable[[int], list[Candidate]],
    places: Sequence[str] = ("inside", "outside"),
) -> list[Row]:  # fmt: skip
    """Rows of `measure_compression` for all contexts of all draws; every finished context is kept.

    Args:
        runs: The model.
        task: Name of the task, also of its cells.
        length: Tokens of a prompt.
        draw: Number of the draw -> its contexts.
        candidates: Number of the draw -> methods; the first is the full cache.
        places: Of the question.
    """
    wanted = ("question", "method", "budget", "exact", "survival", "positions", "bytes", "bytes_full", "tokens")
    named = [[one.name, one.budget] for one in candidates(0)]
    cells, found, draws = runs.cells(f"{task}-{length}-{len(named)}", candidates=named, places=list(places)), [], range(DRAWS)
    for number in draws:
        with needed(f"{task} questions in {length} tokens"):
            contexts = draw(number)
        methods = candidates(number)

        def rows(context: Context, methods: list[Candidate] = methods) -> list[Row]:
            measured = measure_compression(runs.model, methods, [context], list(places), min_full=0.0).rows
            return [{name: row[name] for name in wanted} for row in measured]

        for place, context in enumerate(contexts):
            own = remembered(cells, f"{number}-{place}", lambda context=context, rows=rows: rows(context))  # type: ignore[misc]
            found += [{"task": task, "length": length} | row for row in own]
            runs.bench.report(number * len(contexts) + place + 1, DRAWS * len(contexts), f"{task}, {length} tokens")
    return found


# Timings: caches that are filled with random numbers, because what is in them does not change how long a step takes


class Filled:
    """Caches of a model that have seen a text, without reading one.

    Attributes:
        model: The model.
        length: Tokens in front of decoding.
    """

    def __init__(self, model: Model, length: int) -> None:
        if model.family.position_table and model.positions is not None and length + 64 > model.positions:
            raise NotTestable(f"needs {length + 64} positions; this model has learnt {model.positions}")
        self.model, self.length = model, length
        some = next(model.hf.parameters())
        self._like = {"device": some.device, "dtype": some.dtype if some.is_floating_point() else torch.float32}

    def random(self, heads: int, count: int) -> torch.Tensor:
        """[1, heads, count, width of a head]."""
        return torch.randn(1, heads, count, self.model.heads.head_dim, **self._like)

    def cache(self, groups: Callable[[int], list[Group]]) -> KeptCache:
        """groups: layer -> what it holds."""
        cache = KeptCache(self.model, Full())
        if cache.skipped:
            raise NotTestable("needs a model all of whose layers see the whole text")
        for layer, kept in cache.kept_layers.items():
            kept.groups, kept.seen, kept.is_initialized = groups(layer), self.length, True
        return cache


@torch.no_grad()
def seconds_per_token(model: Model, caches: Mapping[str, KeptCache], rounds: int, tokens: int = 8) -> dict[str, list[float]]:
    """Name -> seconds of a decoded token in each round; the caches take turns, and a first round warms up. They are left longer than they were."""
    times: dict[str, list[float]] = {name: [] for name in caches}
    one = torch.full((1, 1), 7, device=next(model.hf.parameters()).device)
    with attached(model.hf):
        for turn in range(rounds + 1):
            for name, cache in caches.items():
                wait(one)
                started = time.perf_counter()
                for _ in range(tokens):
                    forward(model.hf, one, cache)
                wait(one)
                if turn:
                    times[name].append((time.perf_counter() - started) / tokens)
    return times


def wait(one: torch.Tensor) -> None:
    """Until a GPU has done what it was given."""
    if one.is_cuda:
        torch.cuda.synchronize(one.device)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ends:
    """Median of the ratios of single rounds, and the smallest and the largest of them."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return round(float(np.median(found)), 4), round(min(found), 4), round(max(found), 4)
