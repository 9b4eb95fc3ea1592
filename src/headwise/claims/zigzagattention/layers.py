"""What it costs that all heads of a layer share one type: pass-keys by heads, by five rules for whole layers, and by random layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from headwise.caches.gated import streaming_loss
from headwise.claims.cache_runs import Runs, Values, compared, largest, needed, remembered, smallest
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.claims.intervals import interval
from headwise.claims.zigzagattention.passkeys import FOUND_AT, SEEN, PassKeys, top
from headwise.maths.gates import kept_count
from headwise.methods.zigzag.formula import layer_pattern
from headwise.models.model import device_of

KEEPS = (0.25, 0.5, 0.75)
RULES = {"Z1": "teacher", "Z2": "teacher", "Z3": "layer", "Z4": "group", "Z5": "teacher"}  # rule -> kind of gates
ORDER_TEXTS = 2  # for rule Z5
HEADS, RANDOM = "by heads", "random layers"


def measure(bench: Bench) -> Measured:
    """See the module."""
    keys = PassKeys(Runs(bench))
    found, details = _answers(keys)
    full: dict[str, Number] = {"full": interval(keys.full)}
    grid = keys.runs.model.heads
    gains = largest([compared(found[rule, keep], found[HEADS, keep]) for rule in RULES for keep in KEEPS])
    random = largest([compared(found[RANDOM, keep], found[HEADS, keep]) for keep in KEEPS])
    mean = {name: np.mean([found[name, keep] for keep in KEEPS], axis=0) for name in (*RULES, HEADS, RANDOM)}
    steps = smallest([compared(mean["Z5"], mean["Z3"]), compared(mean["Z3"], mean["Z1"])])
    two = compared(mean["Z1"], mean["Z2"]).ends
    cost = {keep: found[HEADS, keep] - np.mean([found[rule, keep] for rule in RULES], axis=0) for keep in KEEPS}
    falls = compared(cost[0.25], cost[0.5])
    best = min((compared(found[HEADS, 0.5], found[rule, 0.5]) for rule in RULES), key=lambda test: test.ends[0])
    order: dict[str, Number] = {"least_step": steps.ends, "first_two_apart": abs(two[0]), "random": compared(mean["Z1"], mean[RANDOM]).ends}
    gap: dict[str, Number] = {"gap": best.ends, "random": compared(found[HEADS, 0.5], found[RANDOM, 0.5]).ends}
    findings = {
        "zigzag.exclusivity_costs": Finding(full | {"gain": gains.ends, "random": random.ends}),
        "zigzag.rule_order": Finding(full | order),
        "zigzag.cost_falls": Finding(full | {"difference": falls.ends, "at_half": interval(cost[0.5])}, falls.p),
        "zigzag.two_points_grouped": Finding(full | gap | {"group": grid.shape[1] // grid.kv_heads}),
    }
    return Measured(findings, details | {"full": full["full"], "texts": len(keys.block.ids)})


def _answers(keys: PassKeys) -> tuple[dict[tuple[str, float], Values], dict[str, Any]]:
    """(Rule, share) -> [text] pass-keys, mean over seeds; and needles and the chosen layers."""
    patterns: dict[tuple[str, float], list[Values]] = {}
    layers: dict[str, list[list[int]]] = {}
    full, losses = keys.runs.model.heads.full_layers, {seed: _loss(keys, seed) for seed in keys.seeds}
    for seed in keys.seeds:
        for keep in KEEPS:
            patterns.setdefault((HEADS, keep), []).append(top(keys.table("teacher", seed), keep))
            for rule, kind in RULES.items():
                with needed("gates that differ between layers"):
                    kept = layer_pattern(keys.table(kind, seed), keep, rule, losses[seed] if rule == "Z5" else None).kept
                patterns.setdefault((rule, keep), []).append(_whole_layers(keys, kept))
                layers.setdefault(f"{rule}, {keep:.0%}", []).append([full[i] for i in np.flatnonzero(kept)])
            drawn = np.random.default_rng([seed, 49]).permutation(len(full))[: kept_count(keep, len(full))]
            patterns.setdefault((RANDOM, keep), []).append(_whole_layers(keys, np.isin(np.arange(len(full)), drawn)))
        keys.runs.bench.report(seed + 1, len(keys.seeds), "whole layers")
    found = keys.all_answered(patterns)
    right = {f"{rule}, {keep:.0%}": interval(values) for (rule, keep), values in found.items()}
    details: dict[str, Any] = {"pass-keys": right}
    if not keys.runs.bench.real:  # a third of the time of a real model, for a table that decides nothing
        details["needles, one seed"] = _needles(keys, patterns)
    return found, details | {"whole layers by seed": layers}


def _needles(keys: PassKeys, patterns: Mapping[tuple[str, float], Sequence[Values]]) -> dict[str, float]:
    """Rule and share -> share of needle questions that are answered with the pattern of the first seed."""
    cells, found = keys.runs.cells("needles", seen=list(SEEN)), {}
    for number, ((rule, keep), own) in enumerate(patterns.items(), 1):
        rows = remembered(cells, f"{rule.replace(' ', '-')}-{round(100 * keep)}", lambda own=own: [{"right": keys.needles(own[0])}])  # type: ignore[misc]
        found[f"{rule}, {keep:.0%}"] = rows[0]["right"]
        keys.runs.bench.report(number, len(patterns), "needles by patterns of heads")
    return found


def _whole_layers(keys: PassKeys, kept: Values) -> Values:
    return np.repeat(kept[:, None], keys.shape[1], axis=1)


def _loss(keys: PassKeys, seed: int) -> Callable[[Values], float]:
    """What rule Z5 measures; every pattern is measured once, and kept."""
    device = device_of(keys.runs.model.hf)
    chosen = keys.texts("selection", seed, FOUND_AT, ORDER_TEXTS)
    loss = streaming_loss(keys.runs.model.hf, [(torch.tensor([text.ids], device=device), text.places) for text in chosen], SEEN)
    cells = keys.runs.cells(f"order-{seed}", seen=list(SEEN))

    @cache
    def known(kept: tuple[bool, ...]) -> float:
        name = "".join("1" if own else "0" for own in kept)
        return float(remembered(cells, name, lambda: [{"loss": loss(np.array(kept, dtype=bool))}])[0]["loss"])

    def told(kept: Values) -> float:
        found, layers = known(tuple(kept.tolist())), len(kept)
        keys.runs.bench.report(known.cache_info().currsize, layers * (layers + 1) / 2, "order of layers for rule Z5")  # at most so many
        return found

    return told
