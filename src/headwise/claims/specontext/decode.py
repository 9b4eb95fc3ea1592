"""Choosers without training at two budgets behind the same contexts: running text, needles, records, and what moves from step to step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.caches.sparse_cache import sparse_decode
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.claims.specontext.cells import (
    Cells,
    MissingError,
    Values,
    answered,
    budget_for,
    drawn,
    interval,
    length_for,
    rounded,
    strongest_copy_heads,
)
from headwise.evaluation.contexts import Context
from headwise.evaluation.sparse import RECENT, SINKS, TEXT, Rival, Running, measure_cells
from headwise.evaluation.tasks import json_extraction_contexts, needle_contexts
from headwise.heads import HeadSet
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.stats.paired import bootstrap_mean

NEEDLE, RECORDS = "needle", "json_extraction"
ALL_HEADS, OWN_QUERY = "all_heads", "own_query"  # by the step before: one choice by all heads, one per KV head by its query
CONTROLS = ("streaming", "random", "oracle", ALL_HEADS, OWN_QUERY)  # "some chooser" is any but these
SELDOM = "refresh_every"  # chooses anew at every eighth step only, so it says nothing about how much a choice changes
Makers = dict[str, Callable[[], Chooser]]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        length: Tokens of context and answer, or of context and text.
        small, large: Budgets.
        contexts: Per task.
        steps: Of text.
    """

    length: int
    small: int
    large: int
    contexts: int
    steps: int


def effort(bench: Bench) -> Effort:
    """As registered, or what fits into the model's positions."""
    length = length_for(bench.model, bench.pick(2048, 512))
    return Effort(length, budget_for(length, 16), budget_for(length, 4), bench.pick(8, 2), bench.pick(64, 8))


def makers_for(heads: HeadSet | None, every: HeadSet) -> Makers:
    """Every chooser that needs no training, from retrieval heads and all heads of layers with full attention."""
    made: Makers = {
        "streaming": choosers.Streaming, "random": choosers.Random, "oracle": choosers.Oracle, "previous_query": choosers.PreviousQuery,
        "pages": choosers.Pages, "anchor_layers": choosers.AnchorLayers, SELDOM: partial(choosers.RefreshEvery, 8, heads),
        ALL_HEADS: partial(choosers.RetrievalHeads, every), OWN_QUERY: partial(choosers.PreviousQuery, -1.0),
    }  # fmt: skip
    return made if heads is None else made | {"retrieval_heads": partial(choosers.RetrievalHeads, heads)}


def running(
    model: Model, length: int, count: int, steps: int, seed: int, text: Haystack | None = None, part: tuple[float, float] = (0.0, 1.0)
) -> list[Running]:
    """Windows of running text; the last `steps` tokens are what is given step by step.

    Args:
        model: With its tokenizer.
        length: Tokens of each.
        count: How many.
        steps: Decoding steps.
        seed: Of the windows.
        text: Default: the bundled novels.
        part: Share of the text, from and to.
    """
    encoder = PieceEncoder(model.tokenizer)
    text = text or Haystack(bundled_texts(), encoder)
    windows = [text.window(length - len(encoder.bos), (seed, 4, i), part).ids for i in range(count)]
    return [Running(length, (*encoder.bos, *ids), steps) for ids in windows]


def digest(contexts: Sequence[Context | Running]) -> str:
    """A fingerprint of all token ids."""
    return hashlib.sha256(repr([context.ids for context in contexts]).encode()).hexdigest()[:16]


def measured(
    bench: Bench, part: str, rivals: list[Rival], contexts: Sequence[Context | Running], heads: HeadSet | None, said: dict[str, Any]
) -> Cells:
    """Cells of choosers over contexts, kept one by one.

    Args:
        bench: Of the experiment.
        part: Name of the folder of finished cells.
        rivals: Choosers with budgets.
        contexts: Questions and running texts.
        heads: At which the mass that is kept is told apart.
        said: What else decides the numbers, such as how choosers were trained.
    """
    named = {"ids": digest(contexts), "heads": None if heads is None else [str(head) for head in heads]}
    described = describe_model(bench.model) | named | {"rivals": [(one.name, one.budget) for one in rivals]} | said
    return Cells(measure_cells(bench.model, rivals, contexts, heads, bench.cells(part, described), bench.report))


class Decoding:
    """What the claims ask of the cells.

    Args:
        cells: All cells.
        sizes: Budgets.
        makers: Choosers by name.
        has_heads: Whether there are retrieval heads.
    """

    def __init__(self, cells: Cells, sizes: Effort, makers: Makers, has_heads: bool) -> None:
        self._cells, self._sizes, self._has_heads = cells, sizes, has_heads
        self._some = [name for name in makers if name not in CONTROLS]

    def per_layer_above_shared(self) -> Finding:
        """Both look at the step before; the budget where they are nearer decides."""
        small, large = self._sizes.small, self._sizes.large
        changes = {at: self._values(OWN_QUERY, at, "mass") - self._values(ALL_HEADS, at, "mass") for at in (small, large)}
        nearest = min(changes, key=lambda at: float(changes[at].mean()))
        numbers = {"difference": interval(changes[nearest]), "growth": interval(changes[small] - changes[large])}
        return Finding(numbers | {"oracle": interval(self._values("oracle", nearest, "mass"))}, note=f"nearer at budget {nearest}")

    def overlap(self) -> Finding:
        """Of the best chooser at the larger budget."""
        own = {name: self._values(name, self._sizes.large, "overlap") for name in self._some if name != SELDOM}
        if not own:
            raise MissingError("no chooser was run that chooses anew at every step")
        best = max(own, key=lambda one: float(own[one].mean()))
        chance = self._values(best, self._sizes.large, "overlap_by_chance")
        return Finding({"overlap": interval(own[best]), "by_chance": interval(chance)}, note=_named("best", best, own))

    def needles(self) -> Finding:
        """Retrieval heads against recency."""
        self._need_heads()
        return self._cells.difference(NEEDLE, "retrieval_heads", "streaming", self._sizes.small, "score")

    def retrieval_mass(self) -> Finding:
        """The last step of retrieval heads against that of all heads."""
        self._need_heads()
        return self._cells.difference(TEXT, "retrieval_heads", ALL_HEADS, self._sizes.small, "mass_heads")

    def text_as_full(self) -> Finding:
        """Of a chooser that keeps both bounds if there is one, else of the one whose agreement is best."""
        large = self._sizes.large
        found = {}
        for name in self._saving(TEXT):
            change = self._values(name, large, "loss") - self._values(name, large, "full_loss")
            mean, low, high = np.exp(bootstrap_mean(change)).round(5).tolist()
            found[name] = (mean, low, high), self._values(name, large, "agreement")
        best = max(found, key=lambda one: (found[one][0][0] <= 1.01 and found[one][1].mean() >= 0.95, float(found[one][1].mean())))
        ratio, same = found[best]
        control = interval(self._values("streaming", large, "agreement"))
        numbers = {"perplexity_ratio": ratio, "agreement": interval(same), "control": control}
        return Finding(numbers, note=_named("agreement, best", best, {name: one for name, (_, one) in found.items()}))

    def extraction(self) -> Finding:
        """Records of the best chooser, as a share of those of the full model."""
        full = self._cells.full(RECORDS)
        gate = {"full_score": interval(full)}
        try:
            own = {name: self._values(name, self._sizes.large, "score", RECORDS) for name in self._saving(RECORDS)}
        except MissingError:
            return Finding.none(f"the full model scores {full.mean():.2f} on ten records; 0.3 is needed, or no chooser is run")
        best = max(own, key=lambda one: float(own[one].mean()))
        share = interval((own[best] - 0.9 * full) / full.mean() + 0.9)
        control = interval(self._values("streaming", self._sizes.large, "score", RECORDS))
        return Finding(gate | {"share_of_full": share, "control": control}, note=_named("best", best, own))

    def _values(self, name: str, budget: int, what: str, task: str = TEXT) -> Values:
        return self._cells.values(task, name, budget, what)

    def _saving(self, task: str) -> list[str]:
        """Choosers that read less than full attention at the larger budget, what they read to choose included."""
        large, found = self._sizes.large, []
        for name in self._some:
            spent = sum(self._values(name, large, what, task).mean() for what in ("bytes_read", "bytes_chosen_by"))
            if spent < self._values(name, large, "bytes_full", task).mean():
                found.append(name)
        if not found:
            raise MissingError("no chooser reads less than full attention")
        return found

    def _need_heads(self) -> None:
        if not self._has_heads:
            raise MissingError("the model answers no detection needle, so it has no copy heads")


@torch.no_grad()
def moved_share(model: Model, chooser: Chooser, ids: tuple[int, ...], budget: int, steps: int) -> float:
    """Share of the budget that is moved to slots per step, over greedy steps behind a text."""
    with sparse_decode(model, chooser, budget=budget, sinks=SINKS, recent=RECENT, placement="slots", check=False) as cache:
        logits = forward(model.hf, token_tensor(model.hf, ids), cache, logits_to_keep=1).logits
        for _ in range(steps):
            logits = forward(model.hf, logits[:, -1].argmax(dim=-1, keepdim=True), cache).logits
        return float(cache.report()["moved_share"])


def moves(bench: Bench, makers: Makers, sizes: Effort, texts: list[Running], heads: HeadSet | None) -> dict[str, Values]:
    """Chooser -> [text] share that is moved, kept one by one."""
    named = {"ids": digest(texts), "heads": None if heads is None else [str(head) for head in heads], "budget": sizes.large}
    directory = bench.cells("moved", describe_model(bench.model) | named)
    own = {name: make for name, make in makers.items() if name not in ("oracle", ALL_HEADS, OWN_QUERY)}
    found: dict[str, list[float]] = {name: [] for name in own}
    for number, (name, text) in enumerate((name, text) for name in own for text in range(len(texts))):
        kept = directory.load(f"{name}-{text}")
        if kept is None:
            share = moved_share(bench.model, own[name](), texts[text].ids[: -sizes.steps - 1], sizes.large, sizes.steps)
            kept = {"share": np.array(share)}, []
            directory.save(f"{name}-{text}", *kept)
        found[name].append(float(kept[0]["share"]))
        bench.report(number + 1, len(own) * len(texts), f"what {name} moves")
    return {name: np.array(shares) for name, shares in found.items()}


def moved_least(found: dict[str, Values]) -> Finding:
    """Of the chooser that moves least, is no control and chooses anew at every step."""
    own = {name: shares for name, shares in found.items() if name not in (*CONTROLS, SELDOM)}
    best = min(own, key=lambda name: float(own[name].mean()))
    return Finding({"moved_share": interval(own[best]), "gathered": 1.0}, note=_named("least", best, own))


def _named(what: str, best: str, own: dict[str, Values]) -> str:
    return f"{what}: {best}; {', '.join(f'{name} {values.mean():.3f}' for name, values in own.items())}"


def measure(bench: Bench) -> Measured:
    """All claims about choosers without training."""
    model, sizes = bench.model, effort(bench)
    heads = strongest_copy_heads(bench)
    every = HeadSet.of([(layer, head) for layer in model.heads.full_layers for head in range(model.heads.shape[1])], model.heads.shape)
    makers = makers_for(heads, every)
    texts = running(model, sizes.length, sizes.contexts, sizes.steps, bench.seed)
    asked = [
        drawn(partial(task, model, name, sizes.length, sizes.contexts, 1, "test", bench.seed))
        for name, task in ((NEEDLE, needle_contexts), (RECORDS, json_extraction_contexts))
    ]
    rivals = [Rival(name, size, make) for name, make in makers.items() for size in (sizes.small, sizes.large)]
    cells = measured(bench, "decode", rivals, [*texts, *asked[0], *asked[1]], heads, {})
    decoding = Decoding(cells, sizes, makers, heads is not None)
    moved = moves(bench, makers, sizes, texts, heads)
    found: dict[str, Callable[[], Finding]] = {
        "per_layer_above_shared": decoding.per_layer_above_shared, "overlap": decoding.overlap, "mean_misses_needles": decoding.needles,
        "retrieval_mass": decoding.retrieval_mass, "text_as_full": decoding.text_as_full, "extraction": decoding.extraction,
        "bytes_moved": partial(moved_least, moved),
    }  # fmt: skip
    details = {
        "sizes": sizes._asdict(), "heads": None if heads is None else [str(head) for head in heads], "rows": cells.table(),
        "moved": {name: rounded(list(bootstrap_mean(shares))) for name, shares in moved.items()},
    }  # fmt: skip
    return Measured({f"specontext.{name}": one for name, one in answered(found).items()}, details)
