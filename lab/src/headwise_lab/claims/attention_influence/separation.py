"""Claims 2, 3 and 5 on micro-world documents: late references and tables against documents without references, and documents that repeat.

Heads come from the proxy task, whose keys and sentences are none of the documents'. Documents are of the test split. A document's own loss
is computed once for all sets of heads.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from headwise.attention.means import head_means
from headwise.claims.attention_influence.losses import KeptLosses
from headwise.claims.attention_influence.proxy_heads import COPIES, Found, find_heads
from headwise.claims.attention_influence.statistics import Array, auc_interval, bootstrap, mean_interval, placements, rounded
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.heads import HeadSet, HeadwiseError
from headwise.prompts.encoder import PieceEncoder
from headwise.stats.controls import any_layer_random, layer_matched_random
from headwise.stats.paired import sign_flip_test
from headwise.stats.ranks import auc, spearman
from headwise_lab.microworld.registry import make_example

WITH, WITHOUT, REPEATS = ("late_reference", "key_value"), "no_reference", ("duplicate", "boilerplate")
KINDS = (*WITH, WITHOUT, *REPEATS)
POOLS = {"same": "random heads of the same layers", "any": "random heads of any layer", "idle": "random heads that do not copy"}
TESTED = ("same", "any")
MODE_TEXTS = 12  # that outputs of heads are averaged over
FAMILY = "influence-separation"
Scores = dict[str, dict[str, Array]]  # kind -> name of a head set (or `loss`) -> [document]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        documents: Of each kind.
        words: Of a document.
        draws: Sets of random heads of each pool.
        idle: Whether heads that do not copy are a pool, too.
        repeats: Whether random heads are tried on documents that repeat.
    """

    documents: int
    words: int
    draws: int
    idle: bool
    repeats: bool


def effort(bench: Bench) -> Effort:
    """Real models read fewer and shorter documents, and random heads are not tried on all of them."""
    draws = bench.pick(10, 2)
    if bench.real:
        return Effort(bench.pick(16, 6), 150, draws, idle=False, repeats=False)
    return Effort(bench.pick(40, 8), 200, draws, idle=not bench.quick, repeats=not bench.quick)


def documents(count: int, words: int, seed: int) -> dict[str, list[str]]:
    """Kind -> texts of the test split."""
    return {
        kind: [
            make_example("documents", "test", np.random.default_rng([seed, number, i]), kind=kind, words=words).context_text
            for i in range(count)
        ]
        for number, kind in enumerate(KINDS)
    }


def random_sets(found: Found, asked: Effort, seed: int) -> dict[str, list[HeadSet]]:
    """Pool -> draws outside of the chosen heads."""
    chosen, scores, seeds = found.chosen, found.scores, [[seed, draw] for draw in range(asked.draws)]
    drawn = {pool: [draw(chosen, scores, one) for one in seeds] for pool, draw in (("same", layer_matched_random), ("any", any_layer_random))}
    if asked.idle:
        with suppress(HeadwiseError):  # too few heads do not copy
            drawn["idle"] = [layer_matched_random(chosen, ~(scores.values >= COPIES), one) for one in seeds]
    return drawn


def scored(bench: Bench, found: Found, texts: dict[str, list[str]], kept: KeptLosses, asked: Effort) -> Scores:
    """Scores of all documents by the chosen heads (`top`), by every random set (`same/0`, ...), and the plain loss (`loss`)."""
    drawn, out = random_sets(found, asked, bench.seed), Scores()
    for number, kind in enumerate(KINDS):
        bench.report(number, len(KINDS) + 1, kind)
        pools = list(drawn) if asked.repeats or kind not in REPEATS else []
        near = [pool for pool in pools if pool != "any"]  # they begin in the layers of the chosen heads, so they share a pass with them
        names = ["top", *(f"{pool}/{i}" for pool in near for i in range(asked.draws))]
        losses = kept([found.chosen, *(one for pool in near for one in drawn[pool])], texts[kind])
        out[kind] = {"loss": losses.base, **dict(zip(names, losses.scores, strict=True))}
        if "any" in pools:
            out[kind] |= {f"any/{i}": row for i, row in enumerate(kept(drawn["any"], texts[kind]).scores)}
    return out


def modes(chosen: HeadSet, texts: dict[str, list[str]], scores: Scores, kept: KeptLosses, seed: int) -> dict[str, Array]:
    """Mode -> [document] scores of documents with and without references."""
    kinds, encoder = (*WITH, WITHOUT), PieceEncoder(kept.model.tokenizer)
    other = [
        make_example("documents", "train", np.random.default_rng([seed, 7, i]), kind=kinds[i % 3], words=200) for i in range(MODE_TEXTS)
    ]
    room = kept.model.positions
    means = head_means(kept.model.hf, (torch.tensor([encoder.encode(one.context_text)[:room]]) for one in other))
    found = {"uniform": np.concatenate([scores[kind]["top"] for kind in kinds])}
    for mode, given in (("zero", None), ("mean", means)):
        found[mode] = np.concatenate([kept([chosen], texts[kind], mode, given).scores[0] for kind in kinds])
    return found


def both(scores: Scores, name: str) -> tuple[Array, Array]:
    """Scores of documents with references, and of documents without."""
    return np.concatenate([scores[kind][name] for kind in WITH]), scores[WITHOUT][name]


def names_of(scores: Scores, pool: str) -> list[str]:
    """The draws of a pool."""
    return [name for name in scores[WITHOUT] if name.startswith(pool + "/")]


def separation(scores: Scores) -> dict[str, Any]:
    """AUC of each kind against documents without references: of the chosen heads with intervals, of random ones, of the loss."""
    none, result = scores[WITHOUT], dict[str, Any]()
    groups = {kind: (scores[kind], none) for kind in KINDS if kind != WITHOUT}
    groups |= {f"{kind} above late_reference": (scores[kind], scores["late_reference"]) for kind in REPEATS}
    groups["both"] = ({name: both(scores, name)[0] for name in none}, none)
    for group, (above, below) in groups.items():
        result[group] = {"top": auc_interval(above["top"], below["top"]), "lower loss": auc_interval(-above["loss"], -below["loss"])}
        for pool, told in POOLS.items():
            draws = [auc(above[name], below[name]) for name in names_of(scores, pool) if name in above]
            if draws:
                spread = {"sd": np.std(draws), "least": min(draws), "most": max(draws), "draws": len(draws)}
                result[group][told] = {"mean": np.mean(draws), **spread}
    return result | {"mean scores": {kind: float(scores[kind]["top"].mean()) for kind in KINDS}}


def beside_random(scores: Scores) -> dict[str, Any]:
    """How the scores of random heads, the loss and the chosen heads' scores go together, over the documents that all have scored."""
    kinds = [kind for kind in KINDS if all(name in scores[kind] for name in scores[WITHOUT])]
    table = {name: np.concatenate([scores[kind][name] for kind in kinds]) for name in scores[WITHOUT]}
    found: dict[str, Any] = {"loss": spearman(table["top"], table["loss"])}
    for pool, told in POOLS.items():
        values = [spearman(table["top"], table[name]) for name in names_of(scores, pool)]
        if values:
            found[told] = {"mean": np.mean(values), "least": min(values), "most": max(values)}
    return found


def separated(scores: Scores, accuracy: Number) -> dict[str, Finding]:
    """Claims 2 and 3, and the plain loss beside the scores."""
    top, none = both(scores, "top")
    place, chosen, out = placements(top, none), auc_interval(top, none), {}
    for pool in TESTED:
        draws = np.mean([placements(*both(scores, name)) for name in names_of(scores, pool)], axis=0)
        numbers: dict[str, Number] = {"accuracy": accuracy, "chosen": chosen, "random": mean_interval(draws)}
        out[pool] = Finding(rounded(numbers), sign_flip_test(place - draws, "greater"))
    with_loss, without_loss = both(scores, "loss")
    gain = place - placements(-with_loss, -without_loss)
    numbers = {"accuracy": accuracy, "gain": mean_interval(gain), "chosen": chosen, "loss": auc_interval(-with_loss, -without_loss)}
    out["above_loss"] = Finding(rounded(numbers), sign_flip_test(gain, "greater"))
    for kind in REPEATS:
        above, below = scores[kind]["top"], scores["late_reference"]["top"]
        p = sign_flip_test(placements(above, below) - 0.5, "greater")
        out[kind] = Finding(rounded({"accuracy": accuracy, "auc": auc_interval(above, below)}), p)
    return {f"{FAMILY}.{name}": one for name, one in out.items()}


def compared(found: dict[str, Array], accuracy: Number) -> dict[str, Finding]:
    """Claim 5: how alike the modes rank, and whether their means differ."""
    pairs, size = list(combinations(found, 2)), len(found["uniform"])
    least = bootstrap(lambda at: min(spearman(found[a][at["all"]], found[b][at["all"]]) for a, b in pairs), {"all": size})
    apart = [mean_interval(found[a] - found[b]) for a, b in pairs]
    mean, low, high = min(apart, key=lambda ends: abs(ends[0]))
    nearest = (mean, low, high) if mean > 0 else (-mean, -high, -low)
    numbers: dict[str, Number] = {"accuracy": accuracy, "least_correlation": least}
    means: dict[str, Number] = {"accuracy": accuracy, "nearest": nearest, **{mode: mean_interval(one) for mode, one in found.items()}}
    return {f"{FAMILY}.modes": Finding(rounded(numbers)), f"{FAMILY}.mode_means": Finding(rounded(means))}


def measure(bench: Bench) -> Measured:
    """All kinds of documents, by the chosen heads and by random ones."""
    asked, found = effort(bench), find_heads(bench)
    texts, kept = documents(asked.documents, asked.words, bench.seed), KeptLosses(bench, bench.model)
    scores = scored(bench, found, texts, kept, asked)
    by_mode = modes(found.chosen, texts, scores, kept, bench.seed)
    size = asked.documents
    details = {
        "heads": found.told(), "documents of each kind": size, "words": asked.words, "draws": asked.draws, "auc": separation(scores),
        "spearman with the chosen heads' scores": beside_random(scores),
        "auc of both by mode": {mode: auc(values[:-size], values[-size:]) for mode, values in by_mode.items()},
        "spearman of modes": {f"{a}, {b}": spearman(by_mode[a], by_mode[b]) for a, b in combinations(by_mode, 2)},
    }  # fmt: skip
    return Measured(separated(scores, found.accuracy) | compared(by_mode, found.accuracy), rounded(details))
