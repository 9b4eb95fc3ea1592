"""Steering against its definition: an additive mask in one pass of transformers' own attention, over passages that are read once.

Questions and passages are the bundled test needles; the steered passage is the one that answers. Nothing here asks whether the model is good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwise.attention.steer import steer
from headwise.claims.cafe.answers import DELTA
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.needle_passages import needle_examples
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model, device_of
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer, RankingExample
from headwise.stats.paired import bootstrap_mean

INFINITE, LARGE = 1000.0, 50.0
PASSAGES = 6


class Prompt(NamedTuple):
    """One question over its passages.

    Attributes:
        reader: Passages that were read.
        query: The question.
        gold: Index of the passage that answers.
        ids: The whole prompt.
    """

    reader: PassageReader
    query: str
    gold: int
    ids: tuple[int, ...]

    @property
    def span(self) -> tuple[int, int]:
        """Positions of the passage that answers."""
        return self.reader.spans[self.gold]

    @property
    def question(self) -> tuple[int, int]:
        """Positions of the question: all behind the passages."""
        return self.reader.tokens, len(self.ids)


def read(model: Model, composer: PassageComposer, example: RankingExample) -> Prompt:
    """A prompt whose passages have been read."""
    reader = PassageReader(model.hf, composer, example.passages)
    return Prompt(reader, example.query, next(iter(example.gold)), (*reader.ids, *composer.query(example.query).ids))


def log_probabilities(logits: Tensor) -> Tensor:
    """[rows, vocabulary] of logits [1, rows, vocabulary]."""
    return logits[0].float().log_softmax(dim=-1)


@torch.no_grad()
def over_kept(model: Model, prompt: Prompt, delta: float, bias_position: str = "post_scale") -> Tensor:
    """[rows of the question, vocabulary] log-probabilities, steered, over the passages' kept keys and values."""
    with prompt.reader.asking(prompt.query, Boost((prompt.gold,), delta, "question", bias_position)) as (ids, cache):
        logits = forward(model.hf, token_tensor(model.hf, ids[prompt.reader.tokens :]), cache).logits
    return log_probabilities(logits)


@torch.no_grad()
def in_one_pass(model: Model, prompt: Prompt, delta: float) -> Tensor:
    """The same in one pass over the whole prompt, with or without steering."""
    with steer(model, None, [prompt.span], delta, "question", prompt.question):
        logits = model.hf(token_tensor(model.hf, prompt.ids), use_cache=False).logits
    return log_probabilities(logits[:, prompt.reader.tokens :])


@torch.no_grad()
def with_mask(model: Model, prompt: Prompt, added: float, hard: bool = False) -> Tensor:
    """The same by transformers' eager attention.

    Args:
        model: Whose layers all see the whole text.
        prompt: What is read.
        added: Added to the logits of the gold passage's keys in the rows of the question.
        hard: Hide all other keys from these rows instead.
    """
    count, (first, stop), (start, end) = len(prompt.ids), prompt.question, prompt.span
    mask = torch.zeros(count, count)
    mask[first:stop, start:end] = 0.0 if hard else added
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    if hard:
        seen[first:stop] = False
        seen[first:stop, start:end] = True
    mask = mask.masked_fill(~seen, torch.finfo(torch.float32).min)[None, None].to(device_of(model.hf))
    with eager(model):
        logits = model.hf(token_tensor(model.hf, prompt.ids), attention_mask=mask, use_cache=False).logits
    return log_probabilities(logits[:, first:])


@contextmanager
def eager(model: Model) -> Iterator[None]:
    """Inside the block the model attends with matrices that transformers writes out."""
    before: Any = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def no_mask(model: Model) -> str:
    """Why a model takes no mask of ours; empty: it does."""
    if model.is_hybrid or any(window is not None for window in model.heads.windows.values()):
        return "needs a model whose layers all attend and see the whole text, so that one mask serves all"
    return ""


def largest(one: Tensor, other: Tensor) -> float:
    """Largest difference between two tables of log-probabilities."""
    return float((one - other).abs().max())


def of_one(model: Model, prompt: Prompt) -> dict[str, float]:
    """All differences of one prompt; those that a model cannot show are left out."""
    plain, whole, infinite = (in_one_pass(model, prompt, delta) for delta in (0.0, DELTA, INFINITE))
    untouched = over_kept(model, prompt, 0.0)
    with torch.no_grad():
        bare = log_probabilities(model.hf(token_tensor(model.hf, prompt.ids), use_cache=False).logits[:, prompt.reader.tokens :])
    found = {
        "effect": largest(whole, plain),
        "infinite effect": largest(infinite, plain),
        "reused_passages": largest(over_kept(model, prompt, DELTA), whole),
        "zero_delta": largest(plain, bare),
    }
    if not no_mask(model):
        found["additive_mask"] = largest(whole, with_mask(model, prompt, DELTA))
        hidden = with_mask(model, prompt, 0.0, hard=True)
        found["infinite_delta"] = largest(infinite, hidden)
        found["delta_50"] = largest(in_one_pass(model, prompt, LARGE), hidden)
    if model.attention_cap is None:
        moved = {
            name: float((over_kept(model, prompt, math.log(10), name)[-1] - untouched[-1]).abs().mean()) for name in ("pre_scale", "post_scale")
        }
        found |= moved
    return found


def measure(bench: Bench) -> Measured:
    """All claims of the family `cafe-exact`."""
    model, count = bench.model, bench.pick(8, 2)
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    rows = []
    for number, example in enumerate(needle_examples("test", count, PASSAGES)):
        tokens = len(composer.passages(example.passages).ids) + len(composer.query(example.query).ids)
        if model.positions is None or tokens <= model.positions:
            rows.append(of_one(model, read(model, composer, example)))
        bench.report(number + 1, count, f"{tokens} tokens")
    if not rows:
        raise NotTestable(f"needs a model that reads {PASSAGES} short passages; this one has {model.positions} positions")
    return Measured(findings(model, rows), {"questions": len(rows)})


def findings(model: Model, rows: list[dict[str, float]]) -> dict[str, Finding]:
    """Findings from the differences of all prompts."""
    bits = float(torch.finfo(next(model.hf.parameters()).dtype).bits)
    effect, infinite = (max(row[name] for row in rows) for name in ("effect", "infinite effect"))
    found = {}
    for name in ("reused_passages", "additive_mask", "zero_delta", "infinite_delta", "delta_50"):
        if name not in rows[0]:
            found[f"cafe-exact.{name}"] = Finding.none(no_mask(model))
            continue
        numbers: dict[str, Number] = {"largest_difference": max(row[name] for row in rows), "bits": bits}
        found[f"cafe-exact.{name}"] = Finding(numbers | {"effect": infinite if name in ("infinite_delta", "delta_50") else effect})
    found["cafe-exact.pre_scale_inert"] = _inert(rows)
    return found


def _inert(rows: list[dict[str, float]]) -> Finding:
    if "pre_scale" not in rows[0]:
        return Finding.none("a bias before the scaling has no meaning for a model that caps its attention logits")
    ratio = bootstrap_mean(np.array([row["pre_scale"] / max(row["post_scale"], 1e-12) for row in rows]))
    mean, low, high = (round(x, 4) for x in ratio)
    return Finding({"ratio": (mean, low, high), "post_scale": round(float(np.mean([row["post_scale"] for row in rows])), 4)})
