"""Claim 10, with the control that the paper leaves out: train on a corpus and, once more, on a fifth of it that was chosen in different ways.

A corpus of micro-world documents and book passages is scored by the model, and a fifth of each domain's tokens is chosen by influence, at
random, or by length. Small models are trained on equally many tokens of corpus plus choice, several seeds each, and measured on texts of the test
split and on held-out books. All begin with the same weights: those of a model that has learnt to copy from novels, needles in them and repeated
sequences (from scratch a corpus this small teaches no copying). A seed decides the order of the texts and the random choice.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.attention_influence.proxy_heads import find_heads
from headwise.claims.attention_influence.statistics import mean_interval, rounded
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads.progress import part
from headwise.models.model import describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.stats.paired import sign_flip_test
from headwise_lab.claims.attention_influence.training_models import (
    SHARE,
    SIZES,
    Start,
    check_tokenizer,
    chosen_rows,
    fresh,
    make_corpus,
    read_corpus,
    score_corpus,
    start_model,
    stream,
    train,
)
from headwise_lab.claims.attention_influence.training_texts import REFERENCES, Array, Item, measure_texts, test_items
from headwise_lab.recipe.recipes import Recipe

VARIANTS = ("score", "random", "longest")
FAMILY = "influence-training"
LOSS, RIGHT = 0, 1  # columns of a table of texts
Runs = dict[str, list[dict[str, Array]]]  # variant -> per seed: kind -> [text, 2]


class Sizes(NamedTuple):
    """How much is trained.

    Attributes:
        tokens: That a model is trained on; the corpus has a sixth less.
        start: Updates of 8,192 tokens of the model that all others begin with; 0: from scratch.
        seeds: Trainings of each variant.
        items: Test texts of each kind.
    """

    tokens: int
    start: int
    seeds: int
    items: int


WHOLE, QUICK = Sizes(1_200_000, 600, 3, 100), Sizes(60_000, 0, 2, 8)


def trained(bench: Bench, sizes: Sizes, items: dict[str, list[Item]]) -> tuple[Runs, dict[str, Any]]:
    """What every training gives on the test texts, and what was seen twice in it."""
    model, found, encoder = bench.model, find_heads(bench), PieceEncoder(bench.model.tokenizer)
    cells = bench.cells("runs", {"model": describe_model(model), "sizes": sizes._asdict(), "heads": sorted(map(str, found.chosen))})
    corpus = bench.work / "corpus" / "corpus.jsonl.gz"
    make_corpus(corpus, bench.folder("books-large"), int(sizes.tokens / (1 + SHARE)), encoder, bench.seed)
    runs, seen, names = Runs(), dict[str, Any](), [(sizes.seeds * bench.seed + i, variant) for i in range(sizes.seeds) for variant in VARIANTS]
    parts = 1 + len(names)
    scores = score_corpus(bench, corpus, found.chosen, part(bench.report, 0, parts, "scores"))
    documents = read_corpus(corpus, encoder)
    start: Start | None = None
    for number, (seed, variant) in enumerate(names):
        report = part(bench.report, 1 + number, parts, f"{variant}, seed {seed}")
        report(0, 1, "")
        kept = cells.load(f"{variant}-{seed}")
        if kept is None:
            start = start or start_model(bench, sizes.start)
            chosen = chosen_rows(scores, variant, seed)
            hf, loss = train(model, stream(documents, chosen, sizes.tokens, seed), seed, start, report)
            twice = {"documents": int(chosen.sum()), "tokens": sum(len(documents[i]) for i in np.flatnonzero(chosen)), "training loss": loss}
            kept = measure_texts(hf, items), [twice]
            cells.save(f"{variant}-{seed}", *kept)
        runs.setdefault(variant, []).append(kept[0])
        seen[f"{variant}, seed {seed}"] = kept[1][0]
    if sizes.start:
        first = cells.load("start")
        if first is None:
            hf = fresh(Recipe(**SIZES), model)
            hf.load_state_dict(start or start_model(bench, sizes.start))
            first = measure_texts(hf.eval(), items), []
            cells.save("start", *first)
        runs["start"] = [first[0]]
    return runs, {"heads": found.told(), "seen twice": seen, "documents": len(documents)}


def of_references(runs: Runs, variant: str, column: int) -> Array:
    """[seed, text] of the documents that refer back; texts without judged tokens are left out."""
    table = np.array([np.concatenate([run[kind][:, column] for kind in REFERENCES]) for run in runs[variant]])
    return np.asarray(table[:, ~np.isnan(table).any(axis=0)])


def judged(runs: Runs, accuracy: Number) -> dict[str, Finding]:
    """The claims; differences are paired by seed and text."""
    loss = {variant: of_references(runs, variant, LOSS) for variant in VARIANTS}
    right = {variant: of_references(runs, variant, RIGHT) for variant in VARIANTS}
    pairs = {
        "above_random": (loss["random"] - loss["score"], "longest", loss["random"] - loss["longest"]),
        "above_longest": (loss["longest"] - loss["score"], "random", loss["random"] - loss["score"]),
        "more_right": (right["score"] - right["random"], "longest", right["longest"] - right["random"]),
    }
    out = {}
    for name, (gain, beside, other) in pairs.items():
        numbers: dict[str, Number] = {
            "accuracy": accuracy, "gain": mean_interval(gain.mean(axis=0)), "least_seed": float(gain.mean(axis=1).min()),
            beside: mean_interval(other.mean(axis=0)),
        }  # fmt: skip
        out[f"{FAMILY}.{name}"] = Finding(rounded(numbers), sign_flip_test(gain.mean(axis=0), "greater"))
    return out


def tables(runs: Runs) -> dict[str, Any]:
    """Kind -> variant -> loss and share right: mean of the seeds, and each seed's difference to the random fifth."""
    out: dict[str, Any] = {}
    for kind in runs["random"][0]:
        for variant, each in runs.items():
            means = np.array([np.nanmean(run[kind], axis=0) for run in each])
            row: dict[str, Any] = {"loss": means[:, LOSS].mean(), "right": means[:, RIGHT].mean()}
            if variant in VARIANTS:
                apart = means - np.array([np.nanmean(run[kind], axis=0) for run in runs["random"]])
                row |= {"loss to random, by seed": apart[:, LOSS].tolist(), "right to random, by seed": apart[:, RIGHT].tolist()}
            out.setdefault(kind, {})[variant] = row
    return out


def measure(bench: Bench) -> Measured:
    """All trainings, one after another."""
    if importlib.util.find_spec("pyarrow") is None:
        raise NotTestable("needs pyarrow: pip install 'headwise[scale]'")
    check_tokenizer(bench.model)
    sizes = bench.pick(WHOLE, QUICK)
    runs, about = trained(bench, sizes, test_items(bench.model, sizes.items, bench.seed))
    accuracy = tuple(about["heads"]["accuracy"])
    return Measured(judged(runs, accuracy), rounded(about | {"seeds": sizes.seeds, "test texts": tables(runs)}))
