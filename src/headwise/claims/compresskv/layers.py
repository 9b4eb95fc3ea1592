"""Layer errors: they fall with the budget, budgets by errors lower their sum, and two sets of prompts give the same profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwise.caches.allocation import ByLayer, Pyramid
from headwise.claims.cache_runs import Row, Runs, Values, needed, remembered, resampled
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.claims.intervals import interval
from headwise.methods.compresskv.formula import layer_shares
from headwise.methods.compresskv.layer_errors import layer_errors
from headwise.methods.compresskv.press import CompressKV
from headwise.prompts.prompt import Prompt
from headwise.stats.agreement import pearson

FEW = 2  # heads per layer that choose, of 8 (the paper: 4 of 32)
CALIBRATED = 32  # budget at which profiles are measured
FALLS = (16, 24, 32, 48, 64, 96, 128, 256)
MEANS = (48, 96)  # mean budgets that are shared out
PROMPTS = 24
DRAWS = 3  # profiles in random order
PROFILE_SEED = 9


def press(runs: Runs) -> CompressKV:
    """What chooses the positions whose errors are measured."""
    return CompressKV(runs.heads("semantic"), per_layer=FEW, budget=CALIBRATED)


def errors(runs: Runs, split: str, seed: int, budgets: Sequence[int], count: int) -> Values:
    """[budget, prompt, layer] errors over the gold answers of `count` prompts, NaN for layers that are not compressed; every prompt is kept."""
    chooser = press(runs)
    heads = {str(layer): own for layer, own in chooser.chosen.items()}
    cells = runs.cells(f"errors-{split}-{seed}-{len(budgets)}-{sum(budgets)}", budgets=list(budgets), heads=heads)

    def measured(prompt: Prompt) -> list[Row]:
        with needed("layers whose errors can be measured"):
            found = layer_errors(runs.model, chooser, [prompt.ids], [prompt.gold], budgets)
        return [{"errors": row.tolist()} for row in found.values[:, 0]]

    found = []
    for number, prompt in enumerate(runs.prompts(split, seed, count)):
        rows = remembered(cells, str(number), lambda prompt=prompt: measured(prompt))  # type: ignore[misc]
        found.append([row["errors"] for row in rows])
        runs.bench.report(number + 1, count, f"layer errors, {split} prompts")
    return np.array(found).transpose(1, 0, 2)


def profile(runs: Runs, seed: int = PROFILE_SEED) -> tuple[float, ...]:
    """Shares of the layers in the errors at a budget of 32, from detection prompts."""
    count = runs.bench.pick(PROMPTS, 3)
    return layer_shares(errors(runs, "detect", seed, (CALIBRATED,), count)[0], [""] * count)


def shuffled(shares: Sequence[float], draw: int, full: Sequence[int]) -> tuple[float, ...]:
    """The same shares in a random order of the layers that are compressed."""
    found = np.array(shares)
    found[list(full)] = np.random.default_rng([draw, 46]).permutation(found[list(full)])
    return tuple(found.tolist())


def measure(bench: Bench) -> Measured:
    """See the module."""
    runs, count = Runs(bench), bench.pick(PROMPTS, 3)
    full = runs.model.heads.full_layers
    profiles = [profile(runs, seed) for seed in (7, 8)]
    correlation = resampled(pearson, *(np.array(own)[full] for own in profiles))
    falls = bench.pick(FALLS, (16, 32, 96))
    sums = np.nansum(errors(runs, "test", 0, falls, count), axis=2)  # [budget, prompt]
    means = sums.mean(axis=1)
    falling = (np.diff(sums, axis=0) < 0).all(axis=0)
    step = resampled(_largest_step, sums.T)
    changes = {mean: _changes(runs, mean, count) for mean in bench.pick(MEANS, (48,))}
    worst = max(changes.values(), key=lambda each: each["by errors"])
    drawn = [value[0] for name, value in worst.items() if name.startswith("random order")]
    findings = {
        "compresskv.errors_fall": Finding({"largest_step": step, "falling_prompts": interval(falling)}),
        "compresskv.error_budgets_lower_error": Finding({"change": worst["by errors"], "shuffled": round(float(np.mean(drawn)), 4)}),
        "compresskv.profiles_agree": Finding({"correlation": correlation}),
    }
    details: dict[str, Any] = {"error_by_budget": {str(budget): round(float(one), 4) for budget, one in zip(falls, means, strict=True)}}
    details["change_of_the_summed_error"] = {str(mean): each for mean, each in changes.items()}
    return Measured(findings, details | {"profile": [round(one, 4) for one in profile(runs)]})


def _largest_step(sums: Values) -> float:
    """Of sums [prompt, budget]: largest change of the mean from one budget to the next, as a share of the first."""
    means = sums.mean(axis=0)
    return float(np.diff(means).max() / means[0])


def _changes(runs: Runs, mean: int, count: int) -> dict[str, tuple[float, float, float]]:
    """Way to share out a mean budget -> change of the summed error over test prompts, against equal budgets."""
    own, full = profile(runs), runs.model.heads.full_layers
    rules: dict[str, Any] = {"by errors": ByLayer(own), "by errors, no floor": ByLayer(own, least=0), "pyramid": Pyramid()}
    rules |= {f"random order {draw}": ByLayer(shuffled(own, draw, full)) for draw in range(DRAWS)}
    least, length = press(runs).least + 1, runs.sizes.length
    given = {name: [rule.counts(layer, None, mean, least, length, runs.model)[0] for layer in full] for name, rule in rules.items()}
    budgets = sorted({mean, *(budget for counts in given.values() for budget in counts)})
    found = errors(runs, "test", 0, budgets, count)
    even = np.nansum(found[budgets.index(mean)], axis=1)
    changed = {
        name: sum(found[budgets.index(budget), :, layer] for layer, budget in zip(full, counts, strict=True)) for name, counts in given.items()
    }
    return {name: interval(values / even - 1) for name, values in changed.items()}
