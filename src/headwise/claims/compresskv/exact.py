"""What must hold exactly: budgets add up inside their limits and in the right order, and a cache holds the positions that the definition names."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches.allocation import ByLayer
from headwise.caches.kept_cache import compress
from headwise.claims.cache_runs import Runs
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadScores
from headwise.methods.compresskv.press import CompressKV
from headwise.models.forward import token_tensor
from headwise.models.model import Model

CASES = 200
FLOOR, CEILING = 32, 3  # positions, and mean budgets
TOKENS = 160
BUDGETS = (24, 48, 96)
PER_LAYER = 2
CLOSE = 1e-6  # scores that differ by less may change places


def measure_allocation(bench: Bench) -> Measured:
    """Random profiles of layer errors and random budgets."""
    model = bench.model
    full, rng = model.heads.full_layers, np.random.default_rng([bench.seed, 61])
    if not full:
        raise NotTestable("needs a layer that sees the whole text; this model has none")
    wrong = outside = disorder = uneven = 0
    for case in range(bench.pick(CASES, 50)):
        errors = rng.lognormal(0, 1, model.heads.shape[0]) if case % 10 else np.ones(model.heads.shape[0])
        mean, length = int(rng.integers(16, 400)), int(rng.integers(401, 4000))
        counts = budgets(model, errors, mean, length)
        low, high = min(FLOOR, mean), min(length, CEILING * mean)
        wrong += sum(counts) != mean * len(full)
        outside += sum(not low <= count <= high for count in counts)
        ordered = [counts[i] for i in np.argsort(errors[full], kind="stable")]
        disorder += sum(later < earlier - 1 for i, earlier in enumerate(ordered) for later in ordered[i + 1 :])
        uneven += 0 if case % 10 else max(counts) - min(counts)
    findings = {
        "compresskv.budget_sums": Finding({"wrong": int(wrong)}),
        "compresskv.budget_limits": Finding({"outside": int(outside)}),
        "compresskv.budget_order": Finding({"out_of_order": int(disorder), "uneven": int(uneven)}),
    }
    return Measured(findings, {"cases": bench.pick(CASES, 50)})


def budgets(model: Model, errors: np.ndarray, mean: int, length: int) -> list[int]:
    """Positions of each layer that is compressed."""
    rule, scores = ByLayer(tuple(errors.tolist()), FLOOR, CEILING), torch.zeros(1, length)
    return [rule.counts(layer, scores, mean, 12, length, model)[0] for layer in model.heads.full_layers]


def measure_choice(bench: Bench) -> Measured:
    """Positions that a compressed cache holds against those of a loop that follows the paper's figure 3."""
    runs = Runs(bench)
    model, shape = runs.model, runs.model.heads.shape
    heads = HeadScores(np.random.default_rng([bench.seed, 62]).random(shape), "random")
    ids = token_tensor(model.hf, [*runs.encoder.bos, *runs.haystack.window(TOKENS, (bench.seed, 63), (0.6, 1.0)).ids])
    seen: dict[int, Call] = {}
    with torch.no_grad(), attached(model.hf) as plan, plan.running(SimpleNamespace(look=lambda call: seen.setdefault(call.layer, call))):
        model.hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    different, slow = 0, dict[int, list[float]]()
    for budget in bench.pick(BUDGETS, BUDGETS[:1]):
        press = CompressKV(heads, per_layer=min(PER_LAYER, shape[1]), budget=budget)
        with torch.no_grad(), compress(model.hf, press) as cache:
            cache.prefill(ids)
            held = cache.held_positions()
        for layer in cache.kept_layers:
            if layer not in slow:
                slow[layer] = slow_scores(seen[layer], press.chosen[layer], press.window, press.kernel)
            for own in held[layer]:
                different += misplaced(own.tolist(), slow[layer], budget, press.sinks, press.window)
    return Measured({"compresskv.choice_is_definition": Finding({"different": different})}, {"tokens": ids.shape[1]})


def slow_scores(call: Call, heads: list[int], window: int, kernel: int) -> list[float]:
    """Importance of each position in front of the window, by loops over heads, queries and keys; 0 inside the window."""
    query, keys = call.query[0].double(), call.keys[0][0].double()
    length, each = keys.shape[1], len(query) // len(keys)
    total = np.zeros(length)
    for head in heads:
        own = np.zeros(length)
        for row in range(length - window, length):
            logits = [_logit(call, query[head, row], keys[head // each, place]) for place in range(row + 1)]
            more = [] if call.sinks is None else [float(call.sinks[head])]
            top = max(logits + more)
            norm = sum(math.exp(one - top) for one in logits + more)
            for place in range(length - window):
                own[place] += math.exp(logits[place] - top) / norm
        reach = kernel // 2
        padded = np.pad(own, reach)
        total += np.array([padded[place : place + kernel].sum() / kernel for place in range(length)])
    return [float(one) for one in total / len(heads)]


def _logit(call: Call, query: Any, key: Any) -> float:
    logit = float(query @ key) * call.scaling
    return logit if call.softcap is None else call.softcap * math.tanh(logit / call.softcap)


def misplaced(held: list[int], scores: list[float], budget: int, sinks: int, window: int) -> int:
    """Positions that only one side has; those whose score is as good as that of the last place do not count."""
    length = len(scores)
    fixed = {*range(sinks), *range(length - window, length)}
    free = sorted((place for place in range(length) if place not in fixed), key=lambda place: -scores[place])
    wanted = fixed | set(free[: budget - len(fixed)])
    last = scores[free[budget - len(fixed) - 1]]
    return sum(place in fixed or abs(scores[place] - last) > CLOSE for place in wanted ^ set(held))
