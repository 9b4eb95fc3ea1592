"""What tracing costs while a model generates. Its number is a time: it needs an idle machine, and no two runs give the same."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.claims.in_context_atlas.exact import plain_probe
from headwise.claims.in_context_atlas.tracing import PROBE_HEADS
from headwise.heads import HeadwiseError
from headwise.methods.trace.answer import probe_for, trace
from headwise.models.model import need_tokenizer
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import decode_rows

TOKENS, LENGTH, REPEATS = 48, 512, 5


def measure(bench: Bench) -> Measured:
    """The claim about the cost per token, with the probe that comes with headwise or one of as many heads."""
    model: Any = need_tokenizer(bench.model, "tracing")
    try:
        probe = probe_for(model, None)
    except HeadwiseError:
        probe = plain_probe(model, PROBE_HEADS[bench.kind])
    ids = np.random.default_rng(bench.seed).integers(100, len(model.tokenizer) - 1, size=LENGTH).tolist()
    prompt, shares = Prompt(tuple(ids)), []
    for repeat in range(REPEATS):
        bench.report(repeat, REPEATS, "traced and plain in turn")
        plain = seconds(model.hf, prompt)
        with trace(model, probe, prompt):
            shares.append(seconds(model.hf, prompt) / plain - 1)
    return Measured({"trace.overhead.generation": Finding({"overhead": round(statistics.median(shares[1:]), 4)})}, {"heads": len(probe.heads)})


def seconds(hf: Any, prompt: Prompt) -> float:
    """Seconds of the tokens behind the first one."""
    cache = full_cache(hf)
    with attached(hf):
        (first,) = decode_rows(hf, cache, prompt.ids, (), 1, rows=1)
        started = time.perf_counter()
        decode_rows(hf, cache, first, (), TOKENS, rows=1)
        return time.perf_counter() - started
