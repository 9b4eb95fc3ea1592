"""Heads that are made to copy: recall of a title that stands in a stretch of a novel, with copy heads, with random heads, with none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from headwise.attention import force_copy
from headwise.attention.plan import attached
from headwise.caches.shared import fork
from headwise.claims.claim import Finding
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured
from headwise.claims.in_context_atlas.parts import Cell, ends, once, paired, share
from headwise.claims.in_context_atlas.prefilled import Prefilled, prefilled
from headwise.evaluation.variants import describe_scores
from headwise.heads import HeadScores
from headwise.models.forward import forward
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import unigram_recall

HEADS, COPIED, WORDS = 11, 10, 60
WAYS: dict[str, dict[str, Any]] = {"two_step": {}, "mix": {"how": "mix"}, "no_boost": {"beta": 0.0}}
TITLES = (
    "The Glass Orchard", "Seven Quiet Lanterns", "A Ladder to Saturn", "The Salt Merchant's Daughter", "Winter Under Copper Bells",
    "The Last Ferry North", "Songs for a Drowned Valley", "The Clockmaker's Garden", "Ashes of the Paper Kite", "Beyond the Yellow Harbour",
)  # fmt: skip


def measure(bench: Bench) -> Measured:
    """Claims about forced copying."""
    scores = copy_heads(bench)
    draws, count = bench.pick(20, 4), bench.pick(40, 10)
    told = {"heads": describe_scores(scores), "draws": draws, "stretches": count}
    cell = once(bench, "copying", partial(recalls, bench, scores, draws, count), told)
    rows = {name: ends(values if values.ndim == 1 else values.mean(axis=0)) for name, values in cell.items()}
    chosen = [str(head) for head in scores.top(share(bench.model, HEADS))]
    return Measured(judge(cell), {"stretches": count, "draws": draws, "heads": chosen, "recall": rows})


def recalls(bench: Bench, scores: HeadScores, draws: int, count: int) -> Cell:
    """Way -> recall of the title [stretch]; `plain` forces nothing; `random_` and a way: [draw, stretch]."""
    model, found = bench.model, stretches(bench.model, bench.seed, count)
    heads = scores.top(share(model, HEADS))
    prompts, titles = [prompt for prompt, _ in found], [title for _, title in found]
    forced = partial(copied, model, prompts, titles, prefilled(model, [prompt.ids for prompt in prompts]))
    out = {way: forced(heads, given) for way, given in WAYS.items()}
    out["plain"] = forced(None, {})
    for way in ("two_step", "mix"):
        drawn = []
        for draw in range(draws):
            bench.report(draw, draws, f"random heads, {way}")
            drawn.append(forced(layer_matched_random(heads, scores, [bench.seed, draw]), WAYS[way]))
        out[f"random_{way}"] = np.stack(drawn)
    return out


def stretches(model: Model, seed: int, count: int) -> list[tuple[Prompt, str]]:
    """(stretch of a novel with a title in it, span `title`; the title)."""
    builder, rng, found = PromptBuilder(PieceEncoder(model.tokenizer)), np.random.default_rng([seed, 85]), []
    words = " ".join(bundled_texts()).split()
    for number in range(count):
        start = int(rng.integers(len(words) - 2 * WORDS))
        own = words[start : start + WORDS]
        places = [i for i, word in enumerate(own[:-1], 1) if word[-1] in ".!?" and 5 <= i <= WORDS - 10] or [WORDS // 2]
        place, title = int(rng.choice(places)), TITLES[number % len(TITLES)]
        pieces = (Piece(" ".join(own[:place])), Piece(" " + title, ("title",)), Piece(". " + " ".join(own[place:])))
        found.append((builder.build([Turn("user", pieces)]), title))
    return found


@torch.no_grad()
def copied(
    model: Model, prompts: Sequence[Prompt], titles: Sequence[str], start: Prefilled, heads: Any, given: dict[str, Any]
) -> np.ndarray:
    """[stretch] recall of the title in what is generated, all stretches as rows of one batch; heads None: nothing is forced."""
    mask, ids, pads = start.mask, start.rest, start.pads
    cache, said = fork(start.cache), []
    spans = [
        [(prompt.span("title").start + pad, prompt.span("title").stop + pad)] for prompt, pad in zip(prompts, pads, strict=True)
    ]
    with force_copy(model, heads, spans, **given) if heads else attached(model):
        for step in range(COPIED):
            places = mask.sum(dim=1, keepdim=True) - 1
            logits = forward(model.hf, ids, cache, attention_mask=mask, position_ids=places, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(dim=-1)
            said.append(ids[:, 0].tolist())
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1) if step + 1 < COPIED else mask
    texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in np.array(said).T.tolist()]
    return np.array([unigram_recall(text, title) for text, title in zip(texts, titles, strict=True)])


def judge(cell: Cell) -> dict[str, Finding]:
    """Findings of measured recalls; `recalls` says what they are."""
    found = {}
    for way in ("two_step", "mix"):
        drawn = cell[f"random_{way}"].mean(axis=0)
        found[f"steer.copying.{way}"] = paired(
            cell[way] - drawn, forced=ends(cell[way]), random=ends(drawn), plain=ends(cell["plain"])
        )
    boost = {"two_step": ends(cell["two_step"]), "no_boost": ends(cell["no_boost"])}
    return found | {"steer.copying.boost": paired(cell["two_step"] - cell["no_boost"], **boost)}
