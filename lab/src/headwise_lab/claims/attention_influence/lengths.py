"""Claim 4: documents with late references of several lengths, whole ones, and each cut to every length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from headwise.claims.attention_influence.losses import Array, KeptLosses
from headwise.claims.attention_influence.proxy_heads import find_heads
from headwise.claims.attention_influence.statistics import bootstrap, inside_strata, mean_interval, removed, rounded
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.prompts.encoder import PieceEncoder
from headwise.stats.ranks import spearman
from headwise_lab.microworld.registry import make_example

LENGTHS = (64, 128, 256, 512)  # tokens
STRATA = 5
PER_WORD = 1.1  # tokens of a lab model, at least
SHORTEST, LONGEST = 45, 270  # words of whole documents


def texts(encoder: PieceEncoder, kept: list[int], count: int, seed: int) -> tuple[list[str], dict[int, list[str]]]:
    """(documents of all lengths, length -> other documents cut to it)."""
    to_cut = int(max(kept) / PER_WORD)
    whole, cut = list[str](), dict[int, list[str]]()
    for i in range(count):
        rng = np.random.default_rng([seed, 99, i])
        size = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
        whole.append(make_example("documents", "test", rng, kind="late_reference", words=size).context_text)
        ids = encoder.encode(make_example("documents", "test", rng, kind="late_reference", words=to_cut).context_text)
        for length in kept:
            cut.setdefault(length, []).append(encoder.decode(ids[:length]))
    return whole, cut


def within(scores: Array, tokens: NDArray[np.int64]) -> tuple[float, float]:
    """Correlation of scores and length, and the one inside strata of length."""
    return spearman(scores, tokens), inside_strata(scores, tokens, STRATA)


def measure(bench: Bench) -> Measured:
    """Both claims."""
    room = bench.model.positions or LENGTHS[-1]
    kept_lengths = [length for length in LENGTHS if length <= room]
    if len(kept_lengths) < 2:
        raise NotTestable(f"a model of {room} positions cannot read documents of {LENGTHS[1]} tokens")
    found, losses = find_heads(bench), KeptLosses(bench, bench.model)
    whole, cut = texts(PieceEncoder(bench.model.tokenizer), kept_lengths, bench.pick(80, 12), bench.seed)
    bench.report(0, 1 + len(cut), "whole documents")
    own = losses([found.chosen], whole)
    scores, tokens = own.scores[0], own.tokens
    before, after = within(scores, tokens)
    gone = bootstrap(lambda at: removed(*within(scores[at["all"]], tokens[at["all"]])), {"all": len(whole)})
    by_length = {}
    for number, (length, documents) in enumerate(cut.items(), 1):
        bench.report(number, 1 + len(cut), f"{length} tokens")
        by_length[length] = losses([found.chosen], documents).scores[0]
    steps = [mean_interval(by_length[b] - by_length[a]) for a, b in pairwise(kept_lengths)]
    rises: dict[str, Number] = {
        "accuracy": found.accuracy, "least_step": min(steps), "shortest": mean_interval(by_length[kept_lengths[0]])
    }  # fmt: skip
    inside: dict[str, Number] = {"accuracy": found.accuracy, "before": before, "after": after, "removed": gone}
    details = {
        "heads": found.told(), "documents": len(whole), "tokens": [int(tokens.min()), int(tokens.max())],
        "mean scores by length": {str(length): mean_interval(values) for length, values in by_length.items()},
    }  # fmt: skip
    findings = {"influence-lengths.rises": Finding(rounded(rises)), "influence-lengths.strata": Finding(rounded(inside))}
    return Measured(findings, rounded(details))
