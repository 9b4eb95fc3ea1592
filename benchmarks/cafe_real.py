"""CAFE over real passages: evidence kept by the coarse heads' votes, and answers with and without the two stages.

Coarse heads are found on two label sets of HotpotQA's training questions, fine heads on a third one, from what the coarse heads have kept.
Evidence is counted from the tables of `rank_real.py` (the same options, the same --keep); answers are only asked for if the plain answers
pass the gate. Claims and rules: `registered/`, family `cafe`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cafe import pick, shares_of, strongest
from common import hardware, show
from passage_sets import Labelled, Sets, add_options, named
from registered import judged

from headwise.caches.shared import full_cache
from headwise.heads import HeadScores, HeadSet
from headwise.methods.cafe.evidence import evidence_scores, second_stage
from headwise.methods.cafe.formula import ascending, passage_shares, relevance, votes
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.runtime.answer import decode_one, stop_ids
from headwise.runtime.passage_table import PassageTable
from headwise.runtime.passages import Scoring
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import units
from headwise.stats.paired import bootstrap_mean, sign_flip_test

DRAWS = 999
LIMIT = 24  # tokens of an answer
DELTA = math.log(13)
DELTAS = {"log 2": math.log(2), "log 5": math.log(5), "log 13": DELTA, "log 100": math.log(100), "50": 50.0}
GRID = [(heads, most) for heads in (1, 2, 4, 8, 16) for most in (1, 2, 3, 4)]
LEAST_RIGHT, LEAST_GAIN = 0.1, 0.1
PAIRS = {  # claim -> what is right more often than what
    "stage1_above_direct": ("stage 1 only", "direct"),
    "stage1_above_random": ("stage 1 only", "stage 1 only, random heads"),
    "both_above_stage1": ("both stages", "stage 1 only"),
    "steering_above_direct": ("stage 2 only", "direct"),
    "best_last_above_best_first": ("stage 1 only", "stage 1 only, best first"),
    "wrong_candidates_hurt": ("stage 1 only", "steered to wrong passages"),
}


def contains(answer: str, gold: str) -> bool:
    """Whether the words of the right answer stand in the answer, in order, as whole words."""
    said, wanted = units(answer), units(gold)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)) if wanted else False


def overlap(answer: str, gold: str) -> float:
    """F1 of words."""
    said, wanted = Counter(units(answer)), Counter(units(gold))
    shared = sum((said & wanted).values())
    return 2 * shared / (sum(said.values()) + sum(wanted.values())) if shared else 0.0


def answerable(question: Labelled) -> bool:
    """Whether a gold passage, cut as it is, still holds an answer; questions of yes and no are left out."""
    texts = [question.ranking.passages[i] for i in question.ranking.gold]
    return any(contains(f"{p.title} {p.text}", a) for p in texts for a in question.answers if a.lower() not in ("yes", "no"))


def interval(values: Any) -> list[float]:
    return [round(x, 4) for x in bootstrap_mean(np.asarray(values, dtype=float))]


def recalled(kept: Any, gold: np.ndarray) -> float:
    wanted = set(np.flatnonzero(gold).tolist())
    return len({int(i) for i in kept} & wanted) / len(wanted)


class Cafe:
    """Heads of both stages, and what they keep. given: the options."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.sets = given, Sets(given)
        self.stop = stop_ids(self.sets.model)

    def part(self, table: PassageTable, start: int, stop: int) -> PassageTable:
        """Some of a table's questions."""
        rows = {key: getattr(table, key)[start:stop] for key in ("raw", "calibrated", "gold", "lengths")}
        return PassageTable(**rows, skipped=0, scoring=Scoring(), seed=None, layers_left_out=table.layers_left_out)

    @cached_property
    def scores(self) -> HeadScores:
        return evidence_scores(self.part(self.sets.table("hotpotqa-train"), 0, 2 * self.given.labels))

    @cached_property
    def coarse(self) -> HeadSet:
        return self.scores.top(self.given.heads)

    def kept(self, shares: np.ndarray, heads: HeadSet) -> list[int]:
        chosen = pick(shares, heads)
        return ascending(votes(chosen, self.given.m1), relevance(chosen))

    @cached_property
    def fine(self) -> HeadSet:
        """From the third label set, cut to what the coarse heads keep there."""
        start, stop = 2 * self.given.labels, 3 * self.given.labels
        shares = list(shares_of(self.part(self.sets.table("hotpotqa-train"), start, stop)))
        examples = second_stage(self.sets.examples("hotpotqa-train")[start:stop], [self.kept(s, self.coarse) for s in shares])
        usable = [example for example in examples if 0 < len(example.gold) < len(example.passages)]
        return evidence_scores(self.sets.measured("second-stage", usable)).top(self.given.fine_heads)

    def evidence(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Rows and claims about the gold passages among those that are kept, from one table."""
        table, scored = self.sets.table(name), ~np.isnan(self.scores.values)
        drawn = [layer_matched_random(self.coarse, self.scores, (11, number)) for number in range(DRAWS)]
        own = evidence_scores(self.sets.table("nq-train")).top(self.given.heads)
        rows: dict[str, list[float]] = defaultdict(list)
        draws = []
        for shares, gold, present in zip(shares_of(table), table.gold, table.present, strict=True):
            gold = gold[present]
            union = self.kept(shares, self.coarse)
            chance = [self.kept(shares, heads) for heads in drawn]
            draws.append([recalled(kept, gold) for kept in chance])
            others = {
                "all heads, as many": strongest(shares[scored].sum(axis=0), len(union)),
                "coarse heads, sum of shares, as many": strongest(relevance(pick(shares, self.coarse)), len(union)),
                "union of votes, heads found on NQ": self.kept(shares, own),
            }
            rows["union of votes"].append(recalled(union, gold))
            rows["union of votes, random heads"].append(float(np.mean(draws[-1])))
            for who, kept in others.items():
                rows[who].append(recalled(kept, gold))
            rows["passages kept"].append(len(union))
            rows["passages kept, random heads"].append(float(np.mean([len(kept) for kept in chance])))
            rows["passages kept, heads found on NQ"].append(len(others["union of votes, heads found on NQ"]))
            rows["random choice of as many"].append(len(union) / len(gold))
        told = {who: interval(values) for who, values in rows.items()}
        reached = int((np.mean(draws, axis=0) >= np.mean(rows["union of votes"])).sum())
        told["p of coarse heads among the draws"] = round((1 + reached) / (1 + DRAWS), 4)
        told["recall and passages kept by heads and votes"] = self.grid(table)
        return told, self.evidence_claims(name, {who: np.array(values) for who, values in rows.items()})

    def grid(self, table: PassageTable) -> dict[str, list[float]]:
        """(heads, votes each) -> mean recall and passages kept; a description, not a claim."""
        found = {}
        for count, most in GRID:
            heads = self.scores.top(count)
            unions = [votes(pick(shares, heads), most) for shares in shares_of(table)]
            recalls = [recalled(u, g[p]) for u, g, p in zip(unions, table.gold, table.present, strict=True)]
            found[f"{count} x {most}"] = [round(float(np.mean(recalls)), 3), round(float(np.mean([len(u) for u in unions])), 2)]
        return found

    def evidence_claims(self, name: str, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        claims = {}
        for other, row, least in (("all", "all heads, as many", LEAST_GAIN), ("random", "union of votes, random heads", 0.0)):
            change = rows["union of votes"] - rows[row]
            claims[f"cafe.recall_above_{other}.{name}"] = {
                "difference": interval(change), "p": sign_flip_test(change), "least": least, "gate": True,
            }  # fmt: skip
        if name == "hotpotqa":
            change = rows["union of votes"] - rows["coarse heads, sum of shares, as many"]
            claims["cafe.union_as_good_as_sum.hotpotqa"] = {
                "difference": interval(change), "holds": bool(change.mean() >= 0), "gate": True,
            }  # fmt: skip
        return claims

    def asked(self, name: str) -> list[tuple[int, Labelled]]:
        """(place in the table, question) of those that are answered."""
        found = [(place, question) for place, question in enumerate(self.sets.questions(name)) if answerable(question)]
        return found[: self.given.answers]

    def text(self, question: Labelled, reader: PassageReader, boost: Boost | None = None) -> str:
        return self.decoded(reader.answer(question.ranking.query, self.stop, LIMIT, boost))

    def decoded(self, ids: tuple[int, ...]) -> str:
        return self.sets.model.tokenizer.decode([i for i in ids if i not in self.stop], skip_special_tokens=True).strip()

    def read(self, question: Labelled, kept: Any) -> PassageReader:
        return PassageReader(self.sets.model.hf, self.sets.composer, [question.ranking.passages[int(i)] for i in kept])

    def plain(self, question: Labelled, shares: np.ndarray) -> dict[str, str]:
        """Answers over all passages, without and with steering, and without passages."""
        reader = self.read(question, range(len(question.ranking.passages)))
        boost = Boost(tuple(int(i) for i in votes(pick(shares, self.fine), self.given.m2)), DELTA)
        return {
            "direct": self.text(question, reader),
            "stage 2 only": self.text(question, reader, boost),
            "without passages": self.bare(question),
        }

    def bare(self, question: Labelled) -> str:
        """The answer to the question alone."""
        hf, ids = self.sets.model.hf, self.sets.composer.query(question.ranking.query).ids
        return self.decoded(decode_one(hf, full_cache(hf), ids, self.stop, LIMIT))

    def staged(self, question: Labelled, shares: np.ndarray, number: int) -> dict[str, str]:
        """Answers over what the heads keep, in two orders, with steering at several strengths, and with random heads."""
        rng = np.random.default_rng([5, number])
        kept, query = self.kept(shares, self.coarse), question.ranking.query
        reader = self.read(question, kept)
        beta = passage_shares(reader.head_masses(query, self.fine, Scoring()), reader.lengths)
        candidates = tuple(int(i) for i in votes(beta, self.given.m2))
        random = layer_matched_random(self.coarse, self.scores, (12, number))
        summed = relevance(pick(shares, random))
        by_chance = ascending(sorted(strongest(summed, len(kept))), summed)
        said = {
            "stage 1 only": self.text(question, reader),
            "stage 1 only, best first": self.text(question, self.read(question, kept[::-1])),
            "stage 1 only, random heads": self.text(question, self.read(question, by_chance)),
        }
        for name, delta in DELTAS.items():
            said[f"both stages, delta {name}"] = self.text(question, reader, Boost(candidates, delta))
        said["both stages"] = said["both stages, delta log 13"]
        others = [place for place, i in enumerate(kept) if i not in question.ranking.gold]
        wrong = tuple(int(i) for i in rng.permutation(others)[: max(1, len(candidates))])
        said["steered to wrong passages"] = self.text(question, reader, Boost(wrong, DELTA)) if wrong else said["stage 1 only"]
        return said

    def answers(self, name: str, part: str) -> list[dict[str, str]]:
        """One mapping per question; what was said before is read from a file of lines, one per question."""
        path = self.given.keep / f"answers-{part}-{name}.jsonl"
        done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        shares, asked = list(shares_of(self.sets.table(name))), self.asked(name)
        for number, (place, question) in list(enumerate(asked))[len(done) :]:
            said = self.plain(question, shares[place]) if part == "plain" else self.staged(question, shares[place], number)
            done.append({"query": question.ranking.query} | said)
            with path.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
        return done[: len(asked)]

    def judge(self, name: str, said: list[dict[str, str]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Rows (right, F1, first words of an answer) and, by condition, whether each question was answered right."""
        asked = [question for _, question in self.asked(name)]
        right, rows = {}, {}
        for who in [key for key in said[0] if key != "query"]:
            best = [max(overlap(s[who], a) for a in q.answers) for s, q in zip(said, asked, strict=True)]
            right[who] = np.array([float(any(contains(s[who], a) for a in q.answers)) for s, q in zip(said, asked, strict=True)])
            rows[who] = {"right": interval(right[who]), "F1": interval(best)}
        return rows, right


def gate(right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Whether the plain answers can show anything; see `ANSWER_GATE`."""
    plain, gain = interval(right["direct"]), interval(right["direct"] - right["without passages"])
    return {"right": plain, "gain over no passages": gain, "passed": plain[1] > LEAST_RIGHT and gain[1] > 0}


def answer_claims(name: str, passed: bool, right: dict[str, np.ndarray]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    for claim, (one, other) in PAIRS.items():
        claims[f"cafe.{claim}.{name}"] = {"gate": passed}
        if one in right and other in right:
            change = right[one] - right[other]
            claims[f"cafe.{claim}.{name}"] |= {"difference": interval(change), "p": sign_flip_test(change)}
    return claims


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "world-6m-long")
    parser.add_argument("--answers", type=int, default=60, help="questions per set that are answered; 0: evidence only")
    parser.add_argument("--heads", type=int, default=4, help="coarse heads, K1")
    parser.add_argument("--fine-heads", type=int, default=2, help="K2")
    parser.add_argument("--m1", type=int, default=2, help="votes of a coarse head")
    parser.add_argument("--m2", type=int, default=1, help="votes of a fine head")
    parser.add_argument("--only", default="", help="answer and keep this, then stop: plain or staged, a comma, a set")
    parser.set_defaults(keep=Path("cafe-real"))
    return parser.parse_args()


def main() -> None:
    given = options()
    cafe = Cafe(given)
    if given.only:
        part, name = given.only.split(",")
        cafe.answers(name, part)
        return
    claims: dict[str, Any] = {}
    result: dict[str, Any] = {"model": given.model, "coarse heads": [str(h) for h in cafe.coarse]}
    for name in ("hotpotqa", "nq"):
        told, found = cafe.evidence(name)
        claims |= found
        result[name] = {"questions": len(cafe.sets.questions(name)), "evidence": told}
        if given.answers:
            said = cafe.answers(name, "plain")
            passed = gate(cafe.judge(name, said)[1])
            if passed["passed"]:
                said = [one | other for one, other in zip(said, cafe.answers(name, "staged"), strict=True)]
            rows, right = cafe.judge(name, said)
            result[name] |= {"answered": len(said), "gate": passed, "answers": rows}
            claims |= answer_claims(name, passed["passed"], right)
    if given.answers:
        result["fine heads"] = [str(h) for h in cafe.fine]
    show(result | {"claims": judged(named(claims, given)), "hardware": hardware()}, given.json)


if __name__ == "__main__":
    main()
