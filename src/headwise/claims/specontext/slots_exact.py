"""Attention from slots, into which a step moves only what has changed, against attention from keys and values gathered anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.call import Call, KeyProvider, Whole
from headwise.attention.plan import attached
from headwise.attention.selected import Selected
from headwise.caches.choosers import Random
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import sparse_decode
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.maths.slots import take_rows
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model

PROMPT, BUDGET, SINKS, RECENT = 24, 48, 4, 8
STEPS, FEWER = 200, 80
EVERY, BACK = 29, 5  # so often, so many tokens are taken back


class Slots:
    """Step of the pipeline, opened in front of the sparse one: compares what every layer reads with its cache.

    Attributes:
        difference: Largest difference of an output between slots and rows gathered anew, in float32.
        stale: The same if the slots of the step before were read.
        largest: Largest output.
        wrong: Rows of keys or values in slots that are not those of the cache.
        compared: Layers times steps.
    """

    def __init__(self) -> None:
        self.difference = self.stale = self.largest = 0.0
        self.wrong = self.compared = 0
        self._whole: dict[int, Whole] = {}
        self._before: dict[int, Selected] = {}

    def choose_keys(self, call: Call) -> KeyProvider:
        """Changes nothing; keeps the whole keys."""
        if call.query.shape[2] == 1 and isinstance(call.source, Whole):
            self._whole[call.layer] = call.source
        return call.source

    def look(self, call: Call) -> None:
        """Compare one layer of one step."""
        source, whole = call.source, self._whole.pop(call.layer, None)
        if whole is None or not isinstance(source, Selected):
            return
        keys, values = (table[-1].to(source.keys.device) for table in (whole.keys, whole.values))
        places = source.positions.to(keys.device)
        filled = places >= 0
        for held, table in ((source.keys, keys), (source.values, values)):
            self.wrong += int(((held != take_rows(table, places.clamp(min=0))).any(dim=-1) & filled).sum())
        order = places.sort(dim=-1).values
        fresh = Selected(take_rows(keys, order.clamp(min=0)), take_rows(values, order.clamp(min=0)), order >= 0, order)
        wanted = _attended(call, fresh)
        self.difference = max(self.difference, float((_attended(call, source) - wanted).abs().max()))
        self.largest = max(self.largest, float(wanted.abs().max()))
        before = self._before.get(call.layer)
        if before is not None:
            self.stale = max(self.stale, float((_attended(call, before) - wanted).abs().max()))
        self._before[call.layer] = Selected(source.keys.clone(), source.values.clone(), source.mask, source.positions)
        self.compared += 1


def _attended(call: Call, source: Selected) -> Tensor:
    """[B, T, H, d] in float32."""
    own = Selected(source.keys.float(), source.values.float(), source.mask, source.positions)
    return own.attend(call.query.float(), scaling=call.scaling, softcap=call.softcap, sinks=call.sinks)


class Walk(NamedTuple):
    """Random tokens, one by one behind a prompt.

    Attributes:
        ids: Token ids, those that are taken back included.
        steps: How many of them are given one by one.
        back: Steps in front of which tokens are taken back.
    """

    ids: tuple[int, ...]
    steps: int
    back: frozenset[int]


def walk_for(bench: Bench) -> Walk:
    """As many steps as the model has positions for; caches that cannot be cut back never are."""
    model = bench.model
    if not model.heads.full_layers:
        raise NotTestable("needs a layer with full attention: there is nothing to choose in the others")
    steps = min(bench.pick(STEPS, FEWER), (model.positions or 10**9) - PROMPT)
    if PROMPT + steps <= 2 * BUDGET:
        raise NotTestable(f"needs {2 * BUDGET + 1} positions, twice the budget; the model has {model.positions}")
    words = model.hf.get_input_embeddings().num_embeddings
    ids = np.random.default_rng([bench.seed, 51]).integers(words, size=PROMPT + steps)
    uncut = model.is_hybrid or len(model.heads.full_layers) < model.heads.shape[0]
    back = () if uncut else range(EVERY, steps, EVERY)
    return Walk(tuple(int(i) for i in ids), steps, frozenset(back))


@torch.no_grad()
def walked(model: Model, cache: DynamicCache, walk: Walk) -> list[Tensor]:
    """Logits of every step."""
    forward(model.hf, token_tensor(model.hf, walk.ids[:PROMPT]), cache, logits_to_keep=1)
    found = []
    for step, token in enumerate(walk.ids[PROMPT:]):
        if step in walk.back:
            cache.crop(-BACK)
        found.append(forward(model.hf, token_tensor(model.hf, [token]), cache).logits[0, -1])
    return found


@contextmanager
def sparse(model: Model, budget: int, watch: Slots | None = None) -> Iterator[Any]:
    """A cache whose steps read positions by chance from slots."""
    with ExitStack() as blocks:
        plan = blocks.enter_context(attached(model))
        if watch is not None:
            blocks.enter_context(plan.running(watch))
        block = sparse_decode(model, Random(7), budget=budget, sinks=SINKS, recent=RECENT, placement="slots", check=False)
        yield blocks.enter_context(block)


def measure(bench: Bench) -> Measured:
    """Both claims over one walk."""
    model, walk, watch = bench.model, walk_for(bench), Slots()
    with sparse(model, BUDGET, watch) as cache:
        few = walked(model, cache, walk)
        report = cache.report()
    bench.report(1, 3, "slots")
    with sparse(model, len(walk.ids) + 1) as cache:
        all_of_it = walked(model, cache, walk)
    bench.report(2, 3, "a budget that holds everything")
    with attached(model):
        full = walked(model, roomy_cache(model.hf.config), walk)
    bench.report(3, 3, "full attention")

    def different(other: list[Tensor]) -> int:
        return sum(int((one != two).sum()) for one, two in zip(full, other, strict=True))

    scale = max(watch.largest, 1e-30)
    slots = {"largest_difference": watch.difference / scale, "wrong_rows": watch.wrong, "stale_difference": watch.stale / scale}
    whole = {"different": different(all_of_it), "different_when_sparse": different(few)}
    findings = {"specontext.slots_exact": Finding(slots), "specontext.full_budget_exact": Finding(whole)}
    moved = {"sparse steps": report["sparse_steps"], "share of the budget moved per step": round(report["moved_share"], 4)}
    return Measured(findings, {"steps": walk.steps, "tokens taken back": BACK * len(walk.back), "layers times steps": watch.compared} | moved)
