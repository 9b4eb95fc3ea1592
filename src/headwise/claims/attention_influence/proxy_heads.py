"""The heads of a model that the claims are about: found with proxy prompts of four pairs, the strongest 5 % (claim 1)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch

from headwise.claims.attention_influence.statistics import mean_interval, rounded
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import ProxyPrompts
from headwise.methods.influence.proxy import describe_run, proxy_scores, top_share
from headwise.models.model import Model, device_of
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.runtime.rundir import RunDirectory
from headwise.stats.paired import wilson

SAMPLES, QUICK_SAMPLES = 64, 16
LENGTH, PAIRS, KEY_LENGTH, VALUE_TOKENS = 512, 4, 4, 12  # the best of nine settings for `smollm2`, tried on seeds 1001 to 1004
BOOK = "Economy"  # first word of Walden, one of the bundled books
COPIES = 0.1  # heads of at least this score copy
USUAL = Proxy().min_accuracy  # what users meet: models below are refused


class Found(NamedTuple):
    """Heads, and how well the model does the task that they were found on.

    Attributes:
        scores: Proxy scores of all heads.
        chosen: The strongest 5 %.
        accuracy: Share of the proxy questions answered in full, with its interval.
    """

    scores: HeadScores
    chosen: HeadSet
    accuracy: tuple[float, float, float]

    def told(self) -> dict[str, Any]:
        """Plain data for details."""
        heads = {str(head): float(self.scores.values[head]) for head in self.chosen}
        seen = self.scores.provenance
        told: dict[str, Any] = {"heads": heads, "accuracy": self.accuracy, "token accuracy": seen["token_accuracy"], "samples": len(seen["samples"])}
        return dict(rounded(told))


def proxy_prompts(model: Model, samples: int, seed: int, min_accuracy: float = 0.0) -> ProxyPrompts:
    """Prompts over sentences of *Walden*."""
    length = min(LENGTH, model.positions or LENGTH)
    asked = Proxy(
        length=length, samples=samples, pairs=PAIRS, key_length=KEY_LENGTH, value_tokens=VALUE_TOKENS, min_accuracy=min_accuracy, seed=seed
    )
    return ProxyPrompts([text for text in bundled_texts() if text.startswith(BOOK)], PieceEncoder(model.tokenizer), asked)


def find_heads(bench: Bench, model: Model | None = None) -> Found:
    """Heads of the bench's model, or of another one; whether it does the task well enough is for gates to say.

    Args:
        bench: Of the measurement.
        model: Another model.

    Raises:
        NotTestable: No head copies, or too few to choose from, or the prompts do not fit.
    """
    model = model or bench.model
    try:
        prompts = proxy_prompts(model, bench.pick(SAMPLES, QUICK_SAMPLES), bench.seed)
        scores = _scores(model, prompts, bench.shared_cells("proxy", describe_run(model, prompts, prompts.options)), bench.report)
        chosen = top_share(scores)
    except HeadwiseError as error:
        raise NotTestable(f"the proxy task finds no heads: {error}") from error
    right = sum(sample["right"] for sample in scores.provenance["samples"])
    return Found(scores, chosen, tuple(wilson(right, len(prompts))))  # type: ignore[arg-type]


def _scores(model: Model, prompts: ProxyPrompts, cells: RunDirectory | None = None, report: Report = silent) -> HeadScores:
    return proxy_scores(model, prompts, prompts.options, cells, report)


def untrained(model: Model, seed: int) -> Model:
    """The same model with random weights, on the same device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = type(model.hf)(copy.deepcopy(model.hf.config)).eval()
    return Model(hf.to(device_of(model.hf)), model.tokenizer, model.name)


def measure(bench: Bench) -> Measured:
    """Claim 1: a few heads are far above the median head; a model that was never trained is refused."""
    found, twin = find_heads(bench), untrained(bench.model, bench.seed)
    few = max(4, bench.pick(SAMPLES, QUICK_SAMPLES) // 8)
    try:
        strongest = float(np.nanmax(_scores(twin, proxy_prompts(twin, few, bench.seed)).values))
    except HeadwiseError:  # no head copies anything at all
        strongest = 0.0
    refusal = ""
    try:
        _scores(twin, proxy_prompts(twin, few, bench.seed, USUAL))
    except HeadwiseError as error:
        refusal = str(error)
    values, runs = found.scores.values, found.scores.runs
    best, weakest, median = found.chosen.heads[0], found.chosen.heads[-1], float(np.nanmedian(values))
    ends = mean_interval(runs[:, best.layer, best.head]) if runs is not None else (float(values[best]),) * 3
    numbers = {
        "accuracy": found.accuracy, "strongest": ends, "margin": float(values[weakest]) - 3 * median,
        "weakest": float(values[weakest]), "median": median, "untrained_strongest": strongest,
    }  # fmt: skip
    refused = {"untrained_strongest": strongest, "refused": float(bool(refusal)), "strongest": ends}
    copying = int((values >= COPIES).sum())
    details = found.told() | {"heads that score at least 0.1": copying, "median": rounded(median), "untrained model": refusal}
    return Measured(
        {"influence-separation.few_heads": Finding(rounded(numbers)), "influence-heads.untrained": Finding(rounded(refused))}, details
    )
