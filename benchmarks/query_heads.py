"""The QRHead card's claims on the micro-world: few heads against all, calibration, labels, numbers of heads, rules, spans, trimming.

Heads are chosen on the selection split and measured on the test split. --model NAME (a bundled lab model or a folder), --items N.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from common import hardware, show

from headwise.heads import HeadSet
from headwise.methods.query.formula import RULES
from headwise.methods.query.run import query_scores
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model, bundled_names
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import PassageTable, measure_passages
from headwise.runtime.passages import OFFICIAL, Scoring
from headwise.stats.agreement import top_overlap
from headwise.stats.paired import bootstrap_mean
from headwise_lab.ranking import microworld_examples

K, DRAWS, COUNTS = 4, 50, (1, 2, 4, 8, 16, 32, 64)
LONG_START = "Here is something that we would like to know, please read with care and then tell us, in a word or two, "


def hits(table: PassageTable, heads: HeadSet | None, calibrated: bool = True) -> np.ndarray:
    """Recall@1 per query: whether the passage with the largest sum over heads is gold."""
    values = table.calibrated if calibrated else table.raw
    layers = [layer for layer in range(values.shape[1]) if layer not in table.layers_left_out]
    summed = values[:, layers].sum(axis=(1, 2)) if heads is None else sum(values[:, h.layer, h.head] for h in heads)
    best = np.where(table.present, summed, -np.inf).argmax(axis=1)
    return table.gold[np.arange(len(best)), best].astype(float)


def share(values: np.ndarray) -> dict[str, float]:
    mean, low, high = bootstrap_mean(values)
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


class Lab:
    """A model and its tables, measured once per kind of data."""

    def __init__(self, model: Model, items: int) -> None:
        self.model, self.items = model, items
        self.composer = PassageComposer(PieceEncoder(model.tokenizer))

    def table(self, examples: list[RankingExample], scoring: Scoring | None = None, seed: int | None = 0) -> PassageTable:
        return measure_passages(self.model.hf, self.model, self.composer, examples, scoring, seed)

    def data(self, split: str, n: int, count: int | None = None, seed: int = 0) -> list[RankingExample]:
        return microworld_examples(count or self.items, split, seed, n)

    def random(self, draw: int) -> HeadSet:
        layers, heads = self.model.heads.shape
        chosen = np.random.default_rng([9, draw]).permutation(layers * heads)[:K]
        return HeadSet.of([divmod(int(i), heads) for i in chosen], (layers, heads))


def few_heads(lab: Lab, chosen: PassageTable, test: PassageTable) -> dict[str, Any]:
    """Claims 1 and 5: few chosen heads against all and random ones; how recall changes with their number."""
    scores = query_scores(chosen)
    few, every = hits(test, scores.top(K)), hits(test, None)
    random = np.mean([hits(test, lab.random(draw)) for draw in range(DRAWS)], axis=0)
    return {
        "chance": round(float((test.gold.sum(axis=1) / test.present.sum(axis=1)).mean()), 4),
        f"top_{K}": share(few),
        "all_heads": share(every),
        f"random_{K}": share(random),
        "top_minus_all": share(few - every),
        "top_minus_random": share(few - random),
        "by_number": {k: round(float(hits(test, scores.top(k)).mean()), 4) for k in COUNTS if k <= scores.values.size},
    }


def calibration(lab: Lab, chosen: PassageTable) -> dict[str, Any]:
    """Claim 3: one passage at every place; and a text of boilerplate in front that draws attention."""
    base = lab.data("test", 6, 24, seed=5)
    heads, found = query_scores(chosen).top(K), {}
    for name, these in (("top", heads), ("all", None)):
        for kind in ("raw", "calibrated"):
            spreads = []
            for example in base:
                gold = next(iter(example.gold))
                scores = []
                for place in range(6):
                    others = [p for i, p in enumerate(example.passages) if i != gold]
                    moved = RankingExample(
                        example.query, (*others[:place], example.passages[gold], *others[place:]), frozenset({place})
                    )
                    table = lab.table([moved], seed=None)
                    values = getattr(table, kind)[0]
                    summed = values.sum(axis=(0, 1)) if these is None else sum(values[h.layer, h.head] for h in these)
                    scores.append(summed[place] / np.abs(values).sum(axis=(0, 1)).mean())
                spreads.append(np.std(scores))
            found[f"spread_{name}_{kind}"] = share(np.array(spreads))
    first = Passage("Welcome to this page. Sign in to see more of our offers. All rights are kept by the owner.")
    biased = [
        RankingExample(e.query, (first, *e.passages), frozenset(i + 1 for i in e.gold)) for e in lab.data("test", 6, seed=6)
    ]
    table = lab.table(biased, seed=None)
    for name, these in (("top", heads), ("all", None)):
        for kind in (False, True):
            found[f"boilerplate_first_{name}_{'calibrated' if kind else 'raw'}"] = share(hits(table, these, kind))
    return found


def labels_and_rules(lab: Lab, chosen: PassageTable, test: PassageTable) -> dict[str, Any]:
    """Claims 4 and 7: disjoint sets of labels; lists by different rules."""
    halves = [query_scores(lab.table(lab.data("selection", 6, 32, seed=s))) for s in (11, 12)]
    recall = [hits(test, half.top(8)) for half in halves]
    rules = {rule: query_scores(chosen, rule) for rule in RULES}
    return {
        "overlap_of_top_8_from_32_labels": round(8 * top_overlap(halves[0].values, halves[1].values, 8)),
        "recall_difference_of_the_two": share(recall[0] - recall[1]),
        "recall_by_rule": {rule: share(hits(test, scores.top(K))) for rule, scores in rules.items()},
        "overlap_of_top_8_with_calibrated_mass": {
            rule: round(8 * top_overlap(rules["calibrated_mass"].values, scores.values, 8)) for rule, scores in rules.items()
        },
    }


def length_transfer(lab: Lab, chosen: PassageTable) -> dict[str, Any]:
    """Claim 6: heads found with 6 passages on as many as fit, against heads found there."""
    room = (lab.model.positions or 2048) - 60
    many = max(8, min(32, room // 50))
    there = query_scores(lab.table(lab.data("selection", many, 32, seed=13)))
    test = lab.table(lab.data("test", many, lab.items // 2, seed=14))
    return {
        "passages": many,
        "found_with_6": share(hits(test, query_scores(chosen).top(K))),
        "found_there": share(hits(test, there.top(K))),
    }


def spans_and_trimming(lab: Lab, chosen: PassageTable, test: PassageTable) -> dict[str, Any]:
    """Claims 8 and 10: the query's own words against all behind the passages; leaving low tokens out."""
    examples = lab.data("test", 6, seed=1)
    wordy = [RankingExample(LONG_START + e.query[:1].lower() + e.query[1:], e.passages, e.gold) for e in examples]
    heads, query = query_scores(chosen).top(K), Scoring(span="query")
    own = query_scores(lab.table(lab.data("selection", 6, 64), query)).top(K)  # each span with heads chosen by it
    return {
        "official_span": share(hits(test, heads)),
        "query_span": share(hits(lab.table(examples, query), own)),
        "long_query_official_span": share(hits(lab.table(wordy), heads)),
        "long_query_query_span": share(hits(lab.table(wordy, query), own)),
        "trimmed": share(hits(lab.table(examples, OFFICIAL), heads)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world-6m")
    parser.add_argument("--items", type=int, default=200, help="test queries")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    path = str(bundled_model(chosen.model)) if chosen.model in bundled_names() else chosen.model
    lab = Lab(load(path), chosen.items)
    selection, test = lab.table(lab.data("selection", 6, 64)), lab.table(lab.data("test", 6, seed=1))
    result = {
        "model": chosen.model,
        "few_heads": few_heads(lab, selection, test),
        "calibration": calibration(lab, selection),
        "labels_and_rules": labels_and_rules(lab, selection, test),
        "length_transfer": length_transfer(lab, selection),
        "spans_and_trimming": spans_and_trimming(lab, selection, test),
        "hardware": hardware(),
    }
    show(result, chosen.json)


if __name__ == "__main__":
    main()
