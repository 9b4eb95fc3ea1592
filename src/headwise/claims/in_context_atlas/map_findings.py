"""What ablations of the heads of maps say about the claims, and the tables behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.in_context_atlas.parts import ends, paired
from headwise.heads import HeadScores, HeadSet
from headwise.stats.agreement import pearson, split_half_reliability, top_overlap
from headwise.stats.paired import rank_p

LISTS = ("in-context", "parametric", "task", "retrieval")
RULES = ("gradient", "gim", "attnlrp")
SHARE = 0.1
APART = "without overlap"
# Columns of what is measured per record.
SWAPPED, BACK, RIGHT, CLOSED = range(4)
CONDITIONS = (
    "swapped passage, swapped answer",
    "swapped passage, right answer",
    "right passage, right answer",
    "no passage, right answer",
)
Values = np.ndarray


@dataclass(frozen=True)
class Effects:
    """Everything that was measured.

    Attributes:
        maps: List -> scores; also `retrieval, all rows` and `D by` each of `RULES`.
        found: Variant of heads taken away -> `log_probs` and `first`, [record, condition].
        draws: Random sets of heads per list.
        gate: Numbers of records that found heads and that tested them.
    """

    maps: Mapping[str, HeadScores]
    found: Mapping[str, Mapping[str, Values]]
    draws: int
    gate: Mapping[str, Number]

    @property
    def main(self) -> int:
        """Heads of a list that are compared with random ones."""
        return max(1, round(SHARE * int((~np.isnan(self.maps["in-context"].values)).sum())))

    def log_probs(self, variant: str) -> Values:
        """[record, condition]."""
        return self.found[variant]["log_probs"]

    def random(self, name: str) -> Values:
        """[record, condition]: mean over the draws for a list, or for what is left of it without overlap."""
        return np.asarray(np.mean([self.log_probs(f"{name}, draw {draw}") for draw in range(self.draws)], axis=0))

    def needed(self, name: str, variant: str, column: int) -> Finding:
        """How much more the chosen heads cost than random ones of their layers."""
        whole, top, random = (each[:, column] for each in (self.log_probs("none"), self.log_probs(variant), self.random(name)))
        draws = [self.log_probs(f"{name}, draw {draw}")[:, column].mean() for draw in range(self.draws)]
        beside: dict[str, Number] = {"costs": ends(whole - top), "random_costs": ends(whole - random)}
        beside["rank_p"] = round(rank_p(float(top.mean()), np.array(draws)), 4)
        return paired(random - top, **beside, **self.gate)

    def spares(self, name: str, first: int, second: int) -> Finding:
        """How much more one kind of answer falls than another."""
        fall = self.log_probs("none") - self.log_probs(f"{name}, top {self.main}")
        drawn = self.log_probs("none") - self.random(name)
        beside = {"first_fall": ends(fall[:, first]), "second_fall": ends(fall[:, second]), "random": ends(drawn[:, first] - drawn[:, second])}
        return paired(fall[:, first] - fall[:, second], **beside, **self.gate)

    def back(self, variant: str) -> Values:
        """[record] 1 where the right answer is more probable than the swapped one, behind the swapped passage."""
        return (self.log_probs(variant)[:, BACK] > self.log_probs(variant)[:, SWAPPED]).astype(float)

    def top_layer(self, name: str) -> float:
        """Mean layer of the top of a list."""
        return float(np.mean([head.layer for head in self.maps[name].top(self.main)]))


def findings(effects: Effects) -> dict[str, Finding]:
    """Name of a claim, without its set -> finding."""
    top = {name: f"{name}, top {effects.main}" for name in LISTS}
    return {
        "in_context_needed": effects.needed("in-context", top["in-context"], SWAPPED),
        "in_context_spares_memory": effects.spares("in-context", SWAPPED, CLOSED),
        "parametric_needed": effects.needed("parametric", top["parametric"], CLOSED),
        "parametric_spares_context": effects.spares("parametric", CLOSED, SWAPPED),
        "memory_comes_back": memory_comes_back(effects, top["in-context"]),
        "retrieval_needed": effects.needed("retrieval", top["retrieval"], SWAPPED),
        "retrieval_spares_memory": effects.spares("retrieval", SWAPPED, CLOSED),
        "task_needed": effects.needed("task", top["task"], SWAPPED),
        "needed_without_overlap": needed_without_overlap(effects),
        **about_maps(effects),
    }


def contributors(context: HeadScores, answers: str, count: int) -> HeadSet:
    """The heads that contribute most to answers from the passage (`opened`) or from memory (`closed`)."""
    return replace(context, values=context.tables[answers]).top(count)


def needed_without_overlap(effects: Effects) -> Finding:
    """Against draws of its own; where no head overlaps, it would be `in_context_needed` once more."""
    name = f"in-context, {APART}"
    strong = contributors(effects.maps["in-context"], "closed", effects.main)
    left_out = float(len(set(effects.maps["in-context"].top(effects.main)) & set(strong)))
    drawn = effects.needed(name if left_out else "in-context", name, SWAPPED)
    return replace(drawn, numbers={**drawn.numbers, "left_out": left_out})


def memory_comes_back(effects: Effects, top: str) -> Finding:
    """In how many more records the right answer wins than without random heads."""
    draws = np.mean([effects.back(f"in-context, draw {draw}") for draw in range(effects.draws)], axis=0)
    chosen = effects.back(top)
    return paired(chosen - draws, chosen=ends(chosen), random=ends(draws), whole=ends(effects.back("none")), **effects.gate)


def about_maps(effects: Effects) -> dict[str, Finding]:
    """Claims that need no ablation."""
    maps, gate = effects.maps, effects.gate
    spread = {rule: float(np.nanmax(v := maps[f"D by {rule}"].values) - np.nanmin(v)) for rule in RULES}
    by_all, by_last = (effects.top_layer(name) for name in ("retrieval, all rows", "retrieval"))
    halves = {name: split_half_reliability(np.asarray(maps[name].runs)) for name in ("in-context", "task", "retrieval")}
    tables = maps["in-context"].tables
    return {
        "all_rows_are_shallow": Finding(rounded(layers_earlier=by_last - by_all, all_rows=by_all, last_row=by_last, **gate)),
        "rules_separate": Finding(
            rounded(**{f"{rule}_wider": spread[rule] - spread["gradient"] for rule in RULES[1:]}, **spread, **gate)
        ),
        "two_groups": Finding(
            rounded(
                in_common=top_overlap(tables["opened"], tables["closed"], effects.main),
                by_chance=effects.main / int((~np.isnan(maps["in-context"].values)).sum()),
                halves_in_common=halves_in_common(effects),
                **gate,
            )
        ),
        "reliable": Finding(rounded(least=min(halves.values()), **{key.replace("-", "_"): value for key, value in halves.items()}, **gate)),
    }


def rounded(**numbers: Any) -> dict[str, Number]:
    """Numbers with five digits."""
    return {name: value if isinstance(value, tuple) else round(float(value), 5) for name, value in numbers.items()}


def halves_in_common(effects: Effects) -> float:
    """Share of the top of D that every other record and the records between them have in common."""
    runs = np.asarray(effects.maps["in-context"].runs)
    return float(top_overlap(runs[::2].mean(axis=0), runs[1::2].mean(axis=0), effects.main))


def tables(effects: Effects) -> dict[str, Any]:
    """What is told beside the claims: accuracies by variant, and how alike the maps are."""
    maps, found, main = effects.maps, effects.found, effects.main
    kinds = {"first token on top": "first", "log-probability": "log_probs"}
    rows: dict[str, Any] = {
        told: {name: _by_condition(value[kind].mean(axis=0)) for name, value in found.items() if "draw" not in name}
        for told, kind in kinds.items()
    }
    for told, kind in kinds.items():
        for name in LISTS:
            draws = np.mean([found[f"{name}, draw {i}"][kind].mean(axis=0) for i in range(effects.draws)], axis=0)
            rows[told][f"{name}, mean of {effects.draws} draws"] = _by_condition(draws)
    common = {f"{a} and {b}": top_overlap(maps[a].values, maps[b].values, main) for a in LISTS for b in LISTS if a < b}
    return rows | {
        "K": main,
        "top in common": {pair: round(float(value), 4) for pair, value in common.items()},
        "correlation of D and D from signed sums": round(float(pearson(maps["in-context"].values, maps["in-context"].tables["signed"])), 4),
        "heads": {name: [str(head) for head in maps[name].top(main)] for name in LISTS},
        "records": {name: [len(np.asarray(scores.runs)), scores.provenance["records_dropped"]] for name, scores in maps.items()},
    }


def _by_condition(values: Values) -> dict[str, float]:
    return dict(zip(CONDITIONS, np.asarray(values, dtype=float).round(4).tolist(), strict=True))
