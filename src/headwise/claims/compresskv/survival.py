"""What is held of an answer, and what is still said, by who chooses the tokens: with the question inside and outside of what is compressed.

Survival: share of the answer's tokens that are held after the prefill, mean over layers and KV heads. Tokens are right if they are the most
probable ones behind the true text: one pass in place of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.plan import attached
from headwise.caches.controls import Full, RandomTokens
from headwise.caches.kept_layer import View
from headwise.claims.cache_runs import Row, Runs, Test, Values, compared, largest, remembered, smallest
from headwise.claims.claim import Finding, Number
from headwise.claims.compresskv.layers import profile, shuffled
from headwise.claims.experiment import Bench, Measured
from headwise.claims.intervals import interval
from headwise.evaluation.compression import Candidate, survival_of
from headwise.evaluation.reading import Reading, size_of
from headwise.heads import HeadScores, HeadSet
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.snapkv.press import SnapKV
from headwise.models.forward import forward
from headwise.prompts.prompt import Prompt

FOUR, FEW = 4, 2  # heads of a layer that choose, of 8 (the paper: 4 of 32)
SHARES = (0.05, 0.1, 0.2)  # of the prompt
COMPARED = (0.05, 0.1)
OUTSIDE = 0.1
DRAWS = 3  # sets of random heads or tokens, profiles in random order
Maker = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class WrongGroups(SnapKV):
    """SnapKV as in CompressKV's released baseline: KV head j is chosen for by query heads j, j + G, j + 2 G, ..."""

    def scores(self, view: View) -> Tensor:
        """[B, KV heads, S]."""
        each, groups = self.head_scores(view, None), view.model.heads.kv_heads
        return each.view(each.shape[0], -1, groups, each.shape[-1]).mean(dim=1)


def random_heads(shape: tuple[int, int], count: int, draw: int) -> HeadSet:
    """`count` random heads of every layer."""
    rng = np.random.default_rng([draw, 44])
    return HeadSet.of([(i, int(j)) for i in range(shape[0]) for j in rng.permutation(shape[1])[:count]], shape)


def random_ties(scores: HeadScores) -> HeadScores:
    """Layers whose copy scores are all zero have no best heads: chance decides there."""
    noise = np.random.default_rng(45).random(scores.shape) * 1e-9
    return HeadScores(scores.values + noise, scores.score, scores.score_version)


def makers(runs: Runs) -> dict[str, Maker]:
    """Name -> maker of a press from its size; draws carry their number behind a slash."""
    semantic, copy, shape = runs.heads("semantic"), runs.heads("copy"), runs.model.heads.shape
    errors, full = profile(runs), runs.model.heads.full_layers
    every = HeadSet.of([(i, j) for i in range(shape[0]) for j in range(shape[1])], shape)
    found: dict[str, Maker] = {
        "4 semantic heads": lambda **size: CompressKV(semantic, per_layer=FOUR, **size),
        "4 semantic heads, by layer errors": lambda **size: CompressKV(semantic, per_layer=FOUR, layer_errors=errors, **size),
        "4 semantic heads, per group": lambda **size: CompressKV(semantic, per_layer=FOUR, sharing="group", **size),
        "2 semantic heads": lambda **size: CompressKV(semantic, per_layer=FEW, **size),
        "4 copy heads": lambda **size: CompressKV(random_ties(copy), per_layer=FOUR, **size),
        "all heads": lambda **size: CompressKV(every, **size),
        "snapkv": lambda **size: SnapKV(**size),
        "snapkv, wrong groups": lambda **size: WrongGroups(**size),
    }
    for draw in range(DRAWS):
        heads, turned = random_heads(shape, min(FOUR, shape[1]), draw), shuffled(errors, draw, full)
        found[f"4 random heads/{draw}"] = lambda heads=heads, **size: CompressKV(heads, **size)
        found[f"4 semantic heads, errors in random order/{draw}"] = lambda turned=turned, **size: CompressKV(
            semantic, per_layer=FOUR, layer_errors=turned, **size
        )
        found[f"random tokens/{draw}"] = lambda draw=draw, **size: RandomTokens(seed=draw, **size)
    return found


class Held:
    """Values of every context by place of the question, method and budget; draws of one method are averaged."""

    def __init__(self, contexts: Sequence[Sequence[Row]]) -> None:
        self.contexts = contexts
        self.names = list(dict.fromkeys((row["place"], row["method"].split("/")[0], row["budget"]) for row in contexts[0]))

    def values(self, place: str, method: str, budget: float | None, part: str) -> Values:
        """One value per context."""
        wanted = (place, method, budget)
        return np.array(
            [np.mean([row[part] for row in rows if (row["place"], row["method"].split("/")[0], row["budget"]) == wanted]) for rows in self.contexts]
        )

    def table(self) -> list[Row]:
        """One row per place, method and budget."""
        parts = ("exact", "answer", "survival", "bytes")
        return [
            dict(zip(("question", "method", "budget"), name, strict=True)) | {part: interval(self.values(*name, part)) for part in parts}
            for name in self.names
        ]


def measured(runs: Runs) -> Held:
    """All contexts of all seeds; every one is kept when it is done."""
    made = makers(runs)
    sizes = runs.bench.pick(SHARES, COMPARED)
    candidates = [Candidate("full", None, Full())]
    candidates += [Candidate(name, size, make(compression_ratio=1 - size)) for name, make in made.items() for size in sizes]
    cells = runs.cells("survival", candidates=[[one.name, one.budget] for one in candidates], sizes=runs.sizes._asdict())
    contexts, total = [], runs.sizes.seeds * runs.sizes.items
    for seed in range(runs.sizes.seeds):
        for number, prompt in enumerate(runs.prompts("test", seed)):
            contexts.append(remembered(cells, f"{seed}-{number}", lambda prompt=prompt: _rows(runs, candidates, prompt)))  # type: ignore[misc]
            runs.bench.report(len(contexts), total, "survival")
    return Held(contexts)


@torch.no_grad()
def _rows(runs: Runs, candidates: Sequence[Candidate], prompt: Prompt) -> list[Row]:
    """One row per place of the question and candidate.

    exact: the whole line is right, its full stop included, which the model copies as well; answer: the answer alone.
    """
    model, found = runs.model.hf, []
    stop, span = prompt.span("context").stop, prompt.span("answer")
    for place in ("inside", "outside"):
        read, rest = (prompt.ids, ()) if place == "inside" else (prompt.ids[:stop], prompt.ids[stop:])
        with attached(model):
            reading = Reading(runs.model, read)
            for candidate in candidates:
                cache, logits = reading.compressed(candidate.for_prompt(Prompt(read, {"answer/1": span})))
                size, held = size_of(cache), list(cache.held_positions().values())
                ids = torch.tensor([[*rest, *prompt.gold[:-1]]], device=logits.device)
                behind = forward(model, ids, cache).logits[0]
                said = torch.cat([logits, behind]).argmax(dim=-1)[-len(prompt.gold) :].tolist()
                found.append({
                    "place": place, "method": candidate.name, "budget": candidate.budget,
                    "exact": float(said == list(prompt.gold)), "answer": float(said[: span.length] == list(prompt.gold[: span.length])),
                    "survival": float(np.mean(survival_of(held, (span,)))), "bytes": size.nbytes / size.full,
                })  # fmt: skip
    return found


PAIRS = {  # claim -> (what keeps more, than what, name of the latter's share)
    "semantic_at_least_groups": ("4 semantic heads", "snapkv", "groups"),
    "groups_above_all_shared": ("snapkv", "all heads", "shared"),
    "groups_above_wrong_groups": ("snapkv", "snapkv, wrong groups", "wrong"),
    "semantic_above_random": ("4 semantic heads", "4 random heads", "random"),
}
WINDOWED = ("4 semantic heads", "4 copy heads", "all heads", "snapkv")


def measure(bench: Bench) -> Measured:
    """See the module."""
    runs = Runs(bench)
    held = measured(runs)
    full: dict[str, Number] = {"full": interval(held.values("inside", "full", None, "exact"))}
    findings, group = {}, runs.model.heads.shape[1] // runs.model.heads.kv_heads
    for claim, (one, other, name) in PAIRS.items():
        sizes = {size: _kept(held, "inside", one, other, size) for size in COMPARED}
        worst, at = smallest(list(sizes.values())), min(sizes, key=lambda size, sizes=sizes: sizes[size].ends[0])  # type: ignore[misc]
        beside = interval(held.values("inside", other, at, "survival"))
        findings[f"compresskv.{claim}"] = Finding(full | {"difference": worst.ends, name: beside, "group": group}, worst.p)
    chance = {place: largest([_kept(held, place, method, "random tokens", OUTSIDE) for method in WINDOWED]) for place in ("inside", "outside")}
    findings["compresskv.outside_chance"] = Finding(full | {"difference": chance["outside"].ends, "inside": chance["inside"].ends})
    gains = {name: _gain(held, f"4 semantic heads, {name}") for name in ("by layer errors", "errors in random order")}
    numbers = full | {"difference": gains["by layer errors"].ends, "shuffled": gains["errors in random order"].ends}
    findings["compresskv.error_budgets_answer"] = Finding(numbers, gains["by layer errors"].p)
    return Measured(findings, {"table": held.table(), "contexts": len(held.contexts)})


def _kept(held: Held, place: str, one: str, other: str, size: float) -> Test:
    return compared(*(held.values(place, method, size, "survival") for method in (one, other)))


def _gain(held: Held, name: str) -> Test:
    """Exact answers under some budgets minus those under equal ones, mean over the shares."""
    sizes = sorted({size for _, _, size in held.names if size is not None})
    one, even = (np.mean([held.values("inside", who, size, "exact") for size in sizes], axis=0) for who in (name, "4 semantic heads"))
    return compared(one, even)
