"""How much of the evidence votes of heads keep, beside random heads, all heads, and the sum of shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from headwise.claims.cafe.stages import Stages, pick, recalled, shares_of, strongest
from headwise.claims.claim import Finding
from headwise.claims.intervals import interval
from headwise.heads import HeadSet
from headwise.methods.cafe.formula import relevance, votes
from headwise.runtime.passage_table import PassageTable
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import sign_flip_test

DRAWS = 999  # random sets of heads: p cannot go below 1 / 1000
GRID = [(heads, most) for heads in (1, 2, 4, 8, 16) for most in (1, 2, 3, 4)]
UNION, RANDOM, ALL, SUM = "union of votes", "union of votes, random heads", "all heads, as many", "coarse heads, sum of shares, as many"
Rows = Mapping[str, np.ndarray]


def recall_rows(table: PassageTable, stages: Stages, beside: Mapping[str, HeadSet], seed: int = 11) -> tuple[Rows, float]:
    """Who keeps how much of each question's evidence, and p of the coarse heads among random ones.

    Args:
        table: Of the test questions.
        stages: Heads and votes.
        beside: Further sets of heads by name, whose votes are counted in the same way.
        seed: Of the random heads.

    Returns:
        Row -> [question], and the share of draws that reach the coarse heads' mean, as a p-value.
    """
    scored = ~np.isnan(stages.scores.values)
    drawn = [layer_matched_random(stages.coarse, stages.scores, (seed, number)) for number in range(DRAWS)]
    rows: dict[str, list[float]] = defaultdict(list)
    draws = []
    for shares, golds, present in zip(shares_of(table), table.gold, table.present, strict=True):
        gold = golds[present]
        union = stages.kept(shares)
        chance = [votes(pick(shares, heads), stages.counts.m1) for heads in drawn]
        draws.append([recalled(kept, gold) for kept in chance])
        others = {
            ALL: strongest(shares[scored].sum(axis=0), len(union)),
            SUM: strongest(relevance(pick(shares, stages.coarse)), len(union)),
        } | {f"{UNION}, {who}": stages.kept(shares, heads) for who, heads in beside.items()}
        rows[UNION].append(recalled(union, gold))
        rows[RANDOM].append(float(np.mean(draws[-1])))
        rows["passages kept"].append(len(union))
        rows["passages kept, random heads"].append(float(np.mean([len(kept) for kept in chance])))
        rows["random choice of as many"].append(len(union) / len(gold))
        for who, kept in others.items():
            rows[who].append(recalled(kept, gold))
            if who.startswith(UNION):
                rows[f"passages kept, {who.removeprefix(f'{UNION}, ')}"].append(len(kept))
    reached = int((np.mean(draws, axis=0) >= np.mean(rows[UNION])).sum())
    return {who: np.array(values) for who, values in rows.items()}, round((1 + reached) / (1 + DRAWS), 4)


def grid(table: PassageTable, stages: Stages) -> dict[str, list[float]]:
    """Heads x votes each -> mean recall and passages kept; a description, not a claim."""
    found = {}
    shares = list(shares_of(table))
    for count, most in GRID:
        heads = stages.scores.top(count)
        unions = [votes(pick(one, heads), most) for one in shares]
        recalls = [recalled(u, g[p]) for u, g, p in zip(unions, table.gold, table.present, strict=True)]
        found[f"{count} x {most}"] = [round(float(np.mean(recalls)), 3), round(float(np.mean([len(u) for u in unions])), 2)]
    return found


def above(rows: Rows, one: str, other: str, p: float | None = None) -> Finding:
    """The finding that `one` keeps more than `other`; p: of the coarse heads among random draws."""
    change = rows[one] - rows[other]
    numbers: dict[str, Any] = {"difference": interval(change), "chosen": interval(rows[one]), "control": interval(rows[other])}
    if p is not None:
        numbers["p_of_draws"] = p
    return Finding(numbers, sign_flip_test(change))


def recall_findings(rows: Rows, p: float) -> dict[str, Finding]:
    """Claims 1 and 2 on one set of questions: name -> finding.

    Args:
        rows: Of `recall_rows`.
        p: The same.
    """
    return {
        "recall_above_all": above(rows, UNION, ALL),
        "recall_above_random": above(rows, UNION, RANDOM, p),
        "union_as_good_as_sum": above(rows, UNION, SUM),
    }
