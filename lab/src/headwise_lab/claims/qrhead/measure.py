"""Query heads over the micro-world's passages: chosen on the split `selection`, measured on `test`."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.qrhead.places import place_spread, shrinks
from headwise.heads import HeadSet
from headwise.methods.query.options import RULES
from headwise.methods.query.run import query_scores
from headwise.models.model import describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import PassageTable, measure_passages
from headwise.runtime.passages import OFFICIAL, Scoring
from headwise.stats.agreement import top_overlap
from headwise.stats.paired import sign_flip_test
from headwise_lab.claims.qrhead import FAMILY
from headwise_lab.ranking import microworld_examples

CHOSEN, SHARED, DRAWS, PASSAGES = 4, 8, 50, 6
COUNTS = (1, 2, 4, 8, 16, 32, 64)
LONG_START = "Here is something that we would like to know, please read with care and then tell us, in a word or two, "
ARRAYS = ("raw", "calibrated", "gold", "lengths")
BOILERPLATE = Passage("Welcome to this page. Sign in to see more of our offers. All rights are kept by the owner.")


def hits(table: PassageTable, heads: HeadSet | None, calibrated: bool = True) -> np.ndarray:
    """[E] recall@1: whether the passage with the largest sum over heads (None: all) is gold."""
    values = np.nan_to_num(table.calibrated if calibrated else table.raw)
    summed = values.sum(axis=(1, 2)) if heads is None else np.sum([values[:, h.layer, h.head] for h in heads], axis=0)
    best = np.where(table.present, summed, -np.inf).argmax(axis=1)
    return np.asarray(table.gold[np.arange(len(best)), best].astype(float))


class World:
    """The model, its tables of the micro-world's queries, and its query heads."""

    def __init__(self, bench: Bench) -> None:
        self.model, self.bench = bench.model, bench
        self.composer = PassageComposer(PieceEncoder(self.model.tokenizer))
        self.items, self.labels, self.many = bench.pick(60, 12), bench.pick(64, 12), bench.pick(32, 6)
        example = self.data("test", PASSAGES, 1)[0]
        tokens = len(self.composer.passages((BOILERPLATE, *example.passages)).ids) + len(self.composer.query(LONG_START + example.query).ids)
        if self.model.positions is not None and 1.2 * tokens > self.model.positions:
            raise NotTestable(f"needs a model that reads {PASSAGES} passages of the micro-world, about {tokens} tokens")

    def data(self, split: str, passages: int, count: int, seed: int = 0) -> list[RankingExample]:
        """Queries of a split."""
        return microworld_examples(count, split, seed, passages)

    def table(self, name: str, examples: list[RankingExample], scoring: Scoring | None = None, seed: int | None = 0) -> PassageTable:
        """What every head pays to their passages; kept under a name."""
        scoring = scoring or Scoring()
        texts = [[e.query, [tuple(p) for p in e.passages], sorted(e.gold)] for e in examples]
        about = {"model": describe_model(self.model), "examples": texts, "scoring": asdict(scoring), "order": seed}
        cells = self.bench.cells(f"table-{name}", about)
        kept = cells.load("table")
        if kept is None:
            made = measure_passages(self.model.hf, self.model, self.composer, examples, scoring, seed)
            kept = {key: getattr(made, key) for key in ARRAYS}, [{"skipped": made.skipped, "left_out": list(made.layers_left_out)}]
            cells.save("table", *kept)
        arrays, (info,) = kept
        return PassageTable(**arrays, skipped=info["skipped"], scoring=scoring, seed=seed, layers_left_out=tuple(info["left_out"]))

    @cached_property
    def chosen(self) -> PassageTable:
        """Of the labelled queries."""
        return self.table("chosen", self.data("selection", PASSAGES, self.labels))

    @cached_property
    def test(self) -> PassageTable:
        """Of the test queries."""
        return self.table("test", self.data("test", PASSAGES, self.items, 1))

    @cached_property
    def heads(self) -> HeadSet:
        """The query heads that rank."""
        return query_scores(self.chosen).top(CHOSEN)

    @cached_property
    def gate(self) -> dict[str, Number]:
        """Whether these heads rank at all."""
        chance = self.test.gold.sum(axis=1) / self.test.present.sum(axis=1)
        return {"above_chance": interval(hits(self.test, self.heads) - chance)}

    def random(self, draw: int) -> HeadSet:
        """Any heads, as many."""
        layers, heads = self.model.heads.shape
        chosen = np.random.default_rng([9, draw]).permutation(layers * heads)[:CHOSEN]
        return HeadSet.of([divmod(int(i), heads) for i in chosen], (layers, heads))


def _paired(one: np.ndarray, other: np.ndarray) -> dict[str, Number]:
    return {"difference": interval(one - other), "chosen": interval(one), "control": interval(other)}


def few_heads(world: World) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Claims 1 and 5."""
    test, scores = world.test, query_scores(world.chosen)
    few, every = hits(test, world.heads), hits(test, None)
    random = np.mean([hits(test, world.random(draw)) for draw in range(DRAWS)], axis=0)
    by_number = {count: hits(test, scores.top(count)) for count in COUNTS if count <= (~np.isnan(scores.values)).sum()}
    peak = max(by_number, key=lambda count: (by_number[count].mean(), -count))
    found = {
        name: Finding(_paired(few, other) | world.gate, sign_flip_test(few - other))
        for name, other in (("few_above_all", every), ("few_above_random", random))
    }
    decline: dict[str, Number] = {"peak": float(peak), "decline": interval(by_number[peak] - every)}
    found["number_of_heads"] = Finding(decline | world.gate)
    return found, {f"top {count}": interval(row) for count, row in by_number.items()} | {"all heads": interval(every)}


def calibration(world: World) -> dict[str, Finding]:
    """Claim 3."""
    spread = place_spread(
        world.model, world.composer, world.data("test", PASSAGES, world.bench.pick(24, 3), 5), {"all": None, "few": world.heads}
    )
    plain = world.data("test", PASSAGES, world.items, 6)
    behind = [RankingExample(e.query, (BOILERPLATE, *e.passages), frozenset(i + 1 for i in e.gold)) for e in plain]
    table = world.table("boilerplate", behind, seed=None)
    gain, few = (hits(table, these) - hits(table, these, calibrated=False) for these in (None, world.heads))
    numbers: dict[str, Number] = {"gain": interval(gain), "gain_few": interval(few), "more_than_few": interval(gain - few)}
    return {
        "calibration_evens_places": Finding({"shrinks": shrinks(spread["all"]), "control": shrinks(spread["few"])}),
        "calibration_undoes_boilerplate": Finding(numbers | world.gate, sign_flip_test(gain)),
    }


def labels_and_rules(world: World) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Claims 4 and 7."""
    halves = [query_scores(world.table(f"labels-{seed}", world.data("selection", PASSAGES, world.many, seed))) for seed in (11, 12)]
    recall = [hits(world.test, half.top(SHARED)) for half in halves]
    rules = {rule: query_scores(world.chosen, rule) for rule in RULES}
    mass = rules["calibrated_mass"]
    shared = {rule: top_overlap(mass.values, rules[rule].values, SHARED) for rule in RULES}
    ranks = {rule: hits(world.test, scores.top(CHOSEN)) for rule, scores in rules.items()}
    apart = {rule: abs(float((ranks[rule] - ranks["calibrated_mass"]).mean())) for rule in ("ndcg", "mrr")}
    few = {
        "shared": round(SHARED * top_overlap(halves[0].values, halves[1].values, SHARED), 4),
        "by_chance": round(SHARED**2 / float((~np.isnan(mass.values)).sum()), 4),
        "apart": round(abs(float((recall[0] - recall[1]).mean())), 4),
    }
    differ: dict[str, Number] = {"most_shared": max(shared["ndcg"], shared["mrr"]), "largest_difference": round(max(apart.values()), 4)}
    found = {"few_labels": Finding(few), "rules_differ": Finding(differ | world.gate)}
    return found, {rule: {"recall": interval(row), "shared with calibrated mass": shared[rule]} for rule, row in ranks.items()}


def length_transfer(world: World) -> Finding:
    """Claim 6."""
    many = max(PASSAGES + 2, min(32, ((world.model.positions or 2048) - 60) // 50))
    there = query_scores(world.table("found-there", world.data("selection", many, world.many, 13))).top(CHOSEN)
    test = world.table("long", world.data("test", many, world.items // 2, 14))
    few, own = hits(test, world.heads), hits(test, there)
    ratio = float(few.mean() / own.mean()) if own.any() else float("nan")
    numbers: dict[str, Number] = {"ratio": round(ratio, 4), "found_there": interval(own), "found_with_six": interval(few)}
    return Finding(numbers | world.gate, note=f"{many} passages")


def spans_and_trimming(world: World) -> dict[str, Finding]:
    """Claims 8 and 10."""
    examples = world.data("test", PASSAGES, world.items, 1)
    wordy = [RankingExample(LONG_START + e.query[:1].lower() + e.query[1:], e.passages, e.gold) for e in examples]
    query = Scoring(span="query")
    labelled = world.data("selection", PASSAGES, world.labels)
    own = query_scores(world.table("chosen-query", labelled, query)).top(CHOSEN)  # each span with heads chosen by it
    official, alone = hits(world.table("wordy", wordy), world.heads), hits(world.table("wordy-query", wordy, query), own)
    trimmed, plain = hits(world.table("trimmed", examples, OFFICIAL), world.heads), hits(world.test, world.heads)
    change = trimmed - plain
    numbers: dict[str, Number] = {"apart": round(abs(float(change.mean())), 4), "change": interval(change), "control": interval(plain)}
    return {"query_span": Finding(_paired(alone, official) | world.gate), "trimming": Finding(numbers | world.gate)}


def measure(bench: Bench) -> Measured:
    """All claims of the family."""
    world = World(bench)
    found, by_number = few_heads(world)
    bench.report(1, 5, "few heads")
    found |= calibration(world)
    bench.report(2, 5, "calibration")
    more, rules = labels_and_rules(world)
    bench.report(3, 5, "labels and rules")
    found |= more | {"length_transfer": length_transfer(world)}
    bench.report(4, 5, "length")
    found |= spans_and_trimming(world)
    details = {"query heads": [str(head) for head in world.heads], "by number": by_number, "by rule": rules, "queries": world.items}
    return Measured({f"{FAMILY}.{name}": one for name, one in found.items()}, details)
