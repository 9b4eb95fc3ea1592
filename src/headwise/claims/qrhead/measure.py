"""Ranking real passages: chosen heads, all heads, copy heads and random heads beside BM25 and chance.

Query heads are found on HotpotQA's training questions (on NQ also on other questions of NQ), copy heads with needles; everything is measured
on other questions (`passage_sets` says which). All choices of heads read one stored table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.intervals import interval
from headwise.claims.passage_sets import LABEL_SETS, Sets, Sizes
from headwise.heads import HeadScores, HeadSet
from headwise.methods.query.formula import query_score
from headwise.methods.query.options import RULES
from headwise.methods.query.run import query_scores
from headwise.prompts.passages import RankingExample
from headwise.runtime.passage_table import PassageTable
from headwise.stats.agreement import split_half_top_overlap, top_overlap
from headwise.stats.controls import any_layer_random, layer_matched_random
from headwise.stats.paired import sign_flip_test
from headwise.stats.ranking import bm25_candidates
from headwise.stats.ranks import spearman

DRAWS = 999  # random sets of heads: p cannot go below 1 / 1000
FAMILIES = (("rank", False, ("hotpotqa", "nq", "dbpedia")), ("rank-start", True, ("hotpotqa", "nq")))
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
Values = np.ndarray
Found = dict[str, dict[str, Values]]  # ranker -> measure -> [question, draw]


def quality(table: PassageTable, values: Values, rule: str = "ndcg") -> Values:
    """[E, D]: nDCG@10 (or `mrr`: reciprocal rank) of D rankings of each example's passages; values [E, D, P]."""
    rows = [
        query_score(values[i][:, None, present].astype(np.float64), table.gold[i, present], rule)[:, 0]
        for i, present in enumerate(table.present)
    ]
    return np.array(rows)


def by_chance(table: PassageTable) -> Values:
    """[E]: expected nDCG@10 of a random order."""
    gain = 1 / np.log2(np.arange(2, 12))
    return np.array(
        [
            gain[: present.sum()].sum() * gold.sum() / present.sum() / gain[: gold.sum()].sum()
            for present, gold in zip(table.present, table.gold, strict=True)
        ]
    )


def sums(table: PassageTable, masks: Values, kind: str = "calibrated") -> Values:
    """[E, D, P]: sum over each of D sets of heads; masks [D, L, H]."""
    values = np.nan_to_num(getattr(table, kind))
    flat = values.reshape(len(values), -1, values.shape[-1])
    return np.asarray(np.einsum("dh,ehp->edp", masks.reshape(len(masks), -1).astype(np.float32), flat))


def bm25(examples: list[RankingExample]) -> list[Values]:
    """Scores inside each query's candidates, with the statistics of all candidates of the set."""
    every = {f"{i}/{j}": f"{p.title} {p.text}" for i, e in enumerate(examples) for j, p in enumerate(e.passages)}
    found = bm25_candidates({str(i): e.query for i, e in enumerate(examples)}, every, len(every))
    return [np.array([found[str(i)][f"{i}/{j}"] for j in range(len(e.passages))]) for i, e in enumerate(examples)]


def padded(rows: list[Values], table: PassageTable) -> Values:
    """[E, 1, P] of one score per passage; passages that a question lacks get 0."""
    out = np.zeros((len(rows), 1, table.gold.shape[1]))
    for i, row in enumerate(rows):
        out[i, 0, : len(row)] = row
    return out


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        top: Heads that rank.
        sizes: Of the sets of questions.
    """

    top: int
    sizes: Sizes


def effort(bench: Bench) -> Effort:
    """Whole prompts of real models; lab models read short passages and have fewer heads."""
    items, labels = bench.pick(60, 8), bench.pick(32, 8)
    if bench.real:
        return Effort(16, Sizes(items, 0, labels, 10, bench.pick(60, 20)))
    return Effort(4, Sizes(items, 0, labels, bench.pick(8, 4), bench.pick(28, 16)))


class Ranking:
    """Heads and what they are worth."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self.effort = bench, effort(bench)
        self.sets = Sets(bench, self.effort.sizes)

    @cached_property
    def scores(self) -> HeadScores:
        """Query scores from all labelled questions of HotpotQA, one run per question."""
        return query_scores(self.sets.table("hotpotqa-train"))

    def found(self, scores: HeadScores) -> HeadSet:
        """The heads that rank."""
        return scores.top(self.effort.top)

    def label_set(self, number: int) -> HeadScores:
        """Scores from one of three disjoint sets of labels."""
        labels, runs = self.effort.sizes.labels, np.asarray(self.scores.runs)
        own = runs[number * labels : (number + 1) * labels]
        return HeadScores(own.mean(axis=0), "query", self.scores.score_version, own)

    @cached_property
    def copying(self) -> tuple[HeadScores | None, float]:
        """Copy scores, and the share of needle questions that the model solves."""
        try:
            scores = copy_heads(self._bench)
        except NotTestable:
            return None, 0.0
        return scores, scores.provenance["solved"] / scores.provenance["runs"]

    def choices(self) -> dict[str, Values]:
        """Name -> masks [D, L, H] of the sets of heads that are compared; several draws for random ones."""
        selected, scores = self.found(self.scores), self.scores
        every = ~np.isnan(scores.values)
        masks = {"query heads": selected.mask()[None], "all heads": every[None]}
        masks["query heads, found on NQ"] = self.found(query_scores(self.sets.table("nq-train"))).mask()[None]
        for number in range(3):
            masks[f"query heads, label set {number + 1}"] = self.found(self.label_set(number)).mask()[None]
        for name, draw in (("layer-matched random heads", layer_matched_random), ("random heads of any layer", any_layer_random)):
            masks[name] = np.stack([draw(selected, scores, (9, number)).mask() for number in range(DRAWS)])
        if self.copying[0] is not None:
            copies = self.found(self.copying[0])
            masks["copy heads"] = copies.mask()[None]
            draws = [layer_matched_random(copies, scores, (10, number)).mask() for number in range(DRAWS)]
            masks["random heads, matched to copy heads"] = np.stack(draws)
        masks["weakest heads"] = scores.bottom(self.effort.top).mask()[None]
        for count in (c for c in COUNTS if c <= every.sum()):
            masks[f"top {count}"] = scores.top(count).mask()[None]
        for rule in RULES:
            masks[f"rule {rule}"] = self.found(query_scores(self.sets.table("hotpotqa-train"), rule)).mask()[None]
        return masks

    def measure(self, sets: Sets, name: str, masks: dict[str, Values]) -> Found:
        """Ranker -> {"ndcg", "mrr"} -> [E, D] on one set of questions."""
        table, examples = sets.table(name), sets.examples(name)
        given = {who: sums(table, mask) for who, mask in masks.items()}
        given |= {f"{who}, not calibrated": sums(table, masks[who], "raw") for who in ("query heads", "all heads")}
        given["bm25"] = padded(bm25(examples), table)
        found = {who: {rule: quality(table, values, rule) for rule in ("ndcg", "mrr")} for who, values in given.items()}
        return found | {"chance": {"ndcg": by_chance(table)[:, None]}}


PAIRS = {  # claim -> what is above what
    "selected_above_all": ("query heads", "all heads"),
    "selected_above_copy": ("query heads", "copy heads"),
    "selected_above_random": ("query heads", "layer-matched random heads"),
    "all_above_copy": ("all heads", "copy heads"),
    "copy_above_random": ("copy heads", "random heads, matched to copy heads"),
}


def rows_of(found: Found) -> dict[str, Any]:
    """The table of one set: means over questions with intervals; of random heads also how their draws vary."""
    rows: dict[str, Any] = {}
    for who, values in found.items():
        rows[who] = {"nDCG@10" if rule == "ndcg" else "RR": interval(each.mean(axis=1)) for rule, each in values.items()}
        if len(draws := values["ndcg"].mean(axis=0)) > 1:
            rows[who]["draws of nDCG@10, 2.5 % to 97.5 %"] = np.quantile(draws, [0.025, 0.975]).round(4).tolist()
            chosen = "copy heads" if who.endswith("copy heads") else "query heads"
            reached = int((draws >= found[chosen]["ndcg"].mean()).sum())
            rows[who][f"p of {chosen} among the draws"] = round((1 + reached) / (1 + len(draws)), 4)
    return rows


def per_question(found: Found) -> dict[str, Values]:
    """Ranker -> [E] nDCG@10, the mean over its draws."""
    return {who: values["ndcg"].mean(axis=1) for who, values in found.items()}


def paired(found: Found, solved: float) -> dict[str, Finding]:
    """Which ranker is above which, on one set."""
    per = per_question(found)
    selected, every = (interval(per[who] - per["chance"]) for who in ("query heads", "all heads"))
    claims = {}
    for claim, (one, other) in PAIRS.items():
        if one not in per or other not in per:
            claims[claim] = Finding.none("the model solves no needle question, so it has no copy heads")
            continue
        numbers: dict[str, Number] = {"difference": interval(per[one] - per[other]), "chosen": interval(per[one]), "control": interval(per[other])}
        numbers |= {"above_chance": max(selected, every, key=lambda ends: ends[1]), "needles_solved": round(solved, 4)}
        claims[claim] = Finding(numbers, sign_flip_test(per[one] - per[other]))
    return claims


def single(ranking: Ranking, found: Mapping[str, Found]) -> dict[str, Finding]:
    """Claims without a partner in every set: calibration, labels, rules, transfer."""
    one, two = per_question(found["hotpotqa"]), per_question(found["nq"])
    gain = one["all heads"] - one["all heads, not calibrated"]
    beside = one["query heads"] - one["query heads, not calibrated"]
    change = two["query heads, label set 1"] - two["query heads, found on NQ"]
    moved = {"difference": interval(change), "found_there": interval(two["query heads, found on NQ"])}
    return {
        "calibration_helps_all.hotpotqa": Finding({"difference": interval(gain), "control": interval(beside)}, sign_flip_test(gain)),
        "few_labels.hotpotqa": _few_labels(ranking, one),
        "rules_agree.hotpotqa": _rules(ranking, one),
        "transfer.nq": Finding(moved | {"above_chance": interval(two["query heads"] - two["chance"])}),
    }


def _few_labels(ranking: Ranking, one: dict[str, Values]) -> Finding:
    sets = [ranking.label_set(number) for number in range(3)]
    pairs = [(sets[i], sets[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    top, runs, values = ranking.effort.top, np.asarray(ranking.scores.runs), ranking.scores.values
    ndcg = [float(one[f"query heads, label set {number}"].mean()) for number in (1, 2, 3)]
    known = ~np.isnan(values)
    numbers = {
        "shared": float(np.mean([top_overlap(a.values, b.values, top) for a, b in pairs])),
        "by_chance": top / int(known.sum()),
        "halves_share": split_half_top_overlap(runs, top),
        "rank_correlation": float(np.mean([spearman(a.values[known], b.values[known]) for a, b in pairs])),
        "spread": max(ndcg) - min(ndcg),
    }
    return Finding({name: round(value, 4) for name, value in numbers.items()})


def _rules(ranking: Ranking, one: dict[str, Values]) -> Finding:
    rules = {rule: float(one[f"rule {rule}"].mean()) for rule in RULES}
    table, top = ranking.sets.table("hotpotqa-train"), ranking.effort.top
    shared = [top_overlap(query_scores(table, rule).values, ranking.scores.values, top) for rule in RULES]
    apart = max(abs(value - rules["calibrated_mass"]) for value in rules.values())
    return Finding({"largest_difference": round(apart, 4), "least_shared": round(min(shared), 4)})


def measure(bench: Bench) -> Measured:
    """Both families: `rank` on the first questions of each set, `rank-start` on the next ones."""
    ranking = Ranking(bench)
    masks = ranking.choices()
    sizes, solved = ranking.effort.sizes, ranking.copying[1]
    findings: dict[str, Finding] = {}
    tables: dict[str, Any] = {}
    for family, first, names in FAMILIES:
        sets = ranking.sets if not first else Sets(bench, replace(sizes, first=sizes.items))
        found = {name: ranking.measure(sets, name, masks) for name in names}
        for name in names:
            findings |= {f"{family}.{claim}.{name}": one for claim, one in paired(found[name], solved).items()}
        findings |= {f"{family}.{claim}": one for claim, one in single(ranking, found).items()}
        tables[family] = {name: {"questions": len(sets.examples(name)), "rows": rows_of(each)} for name, each in found.items()}
    named = ("query heads", "copy heads", "query heads, found on NQ")
    heads = {name: [f"L{i}H{j}" for i, j in np.argwhere(masks[name][0])] for name in named if name in masks}
    shared = {name: int((masks[name][0] & masks["query heads"][0]).sum()) for name in heads}
    labelled = {name: len(ranking.sets.examples(name)) for name in LABEL_SETS}
    return Measured(findings, {"heads": heads, "shared with query heads": shared, "labelled questions": labelled, "draws": DRAWS, "sets": tables})
