"""The claims of the CAFE card (section 6, 1-7) measured on a lab model over the micro-world's passages. Writes nothing; prints numbers.

Heads are found on the split `selection`; everything that is reported is measured on `test`. Each number is a mean over questions with its
95 % bootstrap interval; differences are paired by question.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from common import hardware

from headwise.heads import HeadScores, HeadSet
from headwise.methods.cafe.coarse_to_fine import CoarseToFine
from headwise.methods.cafe.evidence import evidence_scores, second_stage
from headwise.methods.cafe.formula import passage_shares, relevance, votes
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.passages import RankingExample
from headwise.runtime.answer import stop_ids
from headwise.runtime.passage_table import PassageTable, measure_passages
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import exact_match
from headwise.stats.paired import bootstrap_mean
from headwise_lab.microworld.registry import make_example
from headwise_lab.ranking import from_microworld
from tests.helpers import with_cache

DELTAS = {"0": 0.0, "log 2": math.log(2), "log 5": math.log(5), "log 10": math.log(10), "log 13": math.log(13)} | {
    "log 100": math.log(100),
    "50 (as good as infinite)": 50.0,
}
LIMIT = 16  # tokens of an answer
DRAWS = 20  # of random heads
MISSES = 200  # draws in a row that do not fit, after which drawing ends


class Question(NamedTuple):
    """A labelled question with the answer expected."""

    ranking: RankingExample
    answer: str
    hops: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="world-6m", help="name of a bundled model, or a folder")
    parser.add_argument("--items", type=int, default=100, help="test questions per number of hops")
    parser.add_argument(
        "--detect", type=int, default=0, help="questions per number of hops for detection (0: as many as --items)"
    )
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4, help="coarse heads, K1")
    parser.add_argument("--fine-heads", type=int, default=2, help="K2")
    parser.add_argument("--m1", type=int, default=1)
    parser.add_argument("--m2", type=int, default=1)
    parser.add_argument("--rows", default="question", choices=("question", "question+generated"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def questions(model: Model, split: str, count: int, given: argparse.Namespace) -> list[Question]:
    """`count` questions of one hop and of two that fit into the model with their answers."""
    composer = CoarseToFine(model, None, filter=False, reorder=False, steer=False).composer
    room = model.positions or 2**62
    found = []
    for hops in (1, 2):
        number, misses, mine = 0, 0, 0
        while mine < count and misses < MISSES:
            rng = np.random.default_rng([given.seed, 31, hops, number])
            example = make_example("passages", split, rng, n=given.passages, hops=hops)
            number, ranking, turn = number + 1, from_microworld(example), example.turns[-1]
            tokens = len(composer.passages(ranking.passages).ids) + len(composer.query(ranking.query).ids) + LIMIT
            if tokens > room:
                misses += 1
                continue
            mine, misses = mine + 1, 0
            found.append(Question(ranking, turn.answer_text + turn.close, hops))
    if not found:
        raise SystemExit(f"{given.passages} passages do not fit into {room} positions; use --passages with a smaller number")
    return found


def shares_of(table: PassageTable) -> Iterator[np.ndarray]:
    """[L, H, P] of each question."""
    for raw, present, lengths in zip(table.raw, table.present, table.lengths, strict=True):
        yield passage_shares(np.nan_to_num(raw[..., present]).astype(np.float64), lengths[present])


def pick(shares: np.ndarray, heads: HeadSet) -> np.ndarray:
    return np.stack([shares[head] for head in sorted(heads)])


def strongest(gamma: np.ndarray, count: int) -> set[int]:
    return {int(i) for i in np.argsort(-gamma, kind="stable")[:count]}


def measure_recall(table: PassageTable, scores: HeadScores, heads: HeadSet, hops: Sequence[int], m1: int, rows: Any) -> None:
    """Claims 1 and 2: share of the gold passages among those that are kept."""
    scored = ~np.isnan(scores.values)
    random = [layer_matched_random(heads, scores, (7, draw)) for draw in range(DRAWS)]
    for shares, gold, hop in zip(shares_of(table), table.gold, hops, strict=True):
        wanted = set(np.flatnonzero(gold).tolist())

        def recall(kept: set[int], wanted: set[int] = wanted) -> float:
            return len(kept & wanted) / len(wanted)

        union = set(votes(pick(shares, heads), m1).tolist())
        chance = [set(votes(pick(shares, drawn), m1).tolist()) for drawn in random]
        rows["kept, best heads"].append(len(union))
        rows["kept, random heads"].append(np.mean([len(kept) for kept in chance]))
        found = {
            "best heads": recall(union),
            "all heads": recall(strongest(shares[scored].sum(axis=0), len(union))),
            "random heads": float(np.mean([recall(kept) for kept in chance])),
            "best heads, sum": recall(strongest(relevance(pick(shares, heads)), len(union))),
        }
        for name, value in found.items():
            rows[f"recall, {name}"].append(value)
        rows["recall, best - all"].append(found["best heads"] - found["all heads"])
        rows["recall, best - random"].append(found["best heads"] - found["random heads"])
        rows[f"recall, union - sum, {hop} hop"].append(found["best heads"] - found["best heads, sum"])


class Asker:
    """Answers one question in every way that a claim is about."""

    def __init__(self, model: Model, method: CoarseToFine, given: argparse.Namespace) -> None:
        self.model, self.method, self.given, self.stop = model, method, given, stop_ids(model)

    def read(self, question: Question, kept: Sequence[int]) -> PassageReader:
        return PassageReader(self.model.hf, self.method.composer, [question.ranking.passages[i] for i in kept])

    def right(self, question: Question, reader: PassageReader, boost: Boost | None = None) -> float:
        ids = reader.answer(question.ranking.query, self.stop, LIMIT, boost)
        return float(exact_match(self.model.tokenizer.decode(ids, skip_special_tokens=True), question.answer))

    def boost(self, chosen: Sequence[int], delta: float, bias_position: str = "post_scale") -> Boost:
        return Boost(tuple(int(i) for i in chosen), delta, self.given.rows, bias_position)

    def ask(self, question: Question, number: int, rows: Any) -> None:
        """Claims 3 to 7 on one question."""
        ranking, rng = question.ranking, np.random.default_rng([self.given.seed, 5, number])
        kept = list(self.method.coarse(ranking.query, ranking.passages).kept)
        orders = {"ascending": kept, "random": rng.permutation(kept).tolist(), "descending": kept[::-1]}
        readers = {name: self.read(question, order) for name, order in orders.items()}
        for name, reader in readers.items():
            rows[f"right, stage 1 only, {name}"].append(self.right(question, reader))
        whole, reader = self.read(question, range(len(ranking.passages))), readers["ascending"]
        default = self.method.delta
        fine = self.method.fine(ranking.query, [ranking.passages[i] for i in kept])
        over_all = self.method.fine(ranking.query, ranking.passages)
        gold = {place for place, i in enumerate(kept) if i in ranking.gold}
        rows["recall, kept"].append(len(gold) / len(ranking.gold))
        pointed = len(gold & set(fine.candidates)) / len(ranking.gold)
        rows["recall, candidates"].append(pointed)
        rows["right, direct"].append(self.right(question, whole))
        rows["right, stage 2 only"].append(self.right(question, whole, self.boost(over_all.candidates, default)))
        rows["right, both stages"].append(self.right(question, reader, self.boost(fine.candidates, default)))
        for name, delta in DELTAS.items():
            value = self.right(question, reader, self.boost(fine.candidates, delta))
            rows[f"right, delta {name}"].append(value)
            rows[f"right, delta {name}, evidence {'found' if pointed == 1 else 'missed'}"].append(value)
        others = [place for place in range(len(kept)) if place not in gold]
        if others:
            wrong = rng.permutation(others)[: max(1, len(fine.candidates))]
            change = self.right(question, reader, self.boost(wrong, default)) - rows["right, delta 0"][-1]
            rows["right, wrong candidates - delta 0"].append(change)
        moved = {
            p: self.moved(question, reader, self.boost(fine.candidates, math.log(10), p)) for p in ("post_scale", "pre_scale")
        }
        for name, value in moved.items():
            rows[f"change of logits, {name}"].append(value)
        rows["change of logits, pre / post"].append(moved["pre_scale"] / max(moved["post_scale"], 1e-12))

    def moved(self, question: Question, reader: PassageReader, boost: Boost) -> float:
        """Mean change of the logits of the first answer token."""
        found = []
        for given in (None, boost):
            with reader.asking(question.ranking.query, given) as (ids, cache), torch.no_grad():
                new = torch.tensor([ids[reader.tokens :]], device=self.model.hf.device)
                out = self.model.hf(new, **with_cache(cache), use_cache=True, logits_to_keep=1)
            found.append(out.logits[0, -1].float())
        return float((found[1] - found[0]).abs().mean())


def differences(rows: dict[str, list[float]]) -> None:
    """Paired gains, added to the rows."""
    for name, one, other in (
        ("gain of stage 1 over direct", "stage 1 only, ascending", "direct"),
        ("gain of stage 2 over stage 1", "both stages", "stage 1 only, ascending"),
        ("gain of stage 2 over direct", "stage 2 only", "direct"),
        ("ascending - random order", "stage 1 only, ascending", "stage 1 only, random"),
        ("random - descending order", "stage 1 only, random", "stage 1 only, descending"),
    ):
        rows[f"right, {name}"] = (np.array(rows[f"right, {one}"]) - rows[f"right, {other}"]).tolist()


def measured(given: argparse.Namespace, note: Callable[[str], None]) -> dict[str, Any]:
    name = str(bundled_model(given.model)) if bundled_model(given.model).is_dir() else given.model
    model = load(name)
    note("finding coarse heads")
    training = [q.ranking for q in questions(model, "selection", given.detect or given.items, given)]
    composer = CoarseToFine(model, None, filter=False, reorder=False, steer=False).composer
    coarse_scores = evidence_scores(measure_passages(model.hf, model, composer, training))
    coarse = coarse_scores.top(given.heads)
    note("finding fine heads")
    first = CoarseToFine(model, coarse, m1=given.m1, steer=False)
    kept = [first.coarse(example.query, example.passages).kept for example in training]
    fine_scores = evidence_scores(measure_passages(model.hf, model, composer, second_stage(training, kept)))
    fine = fine_scores.top(given.fine_heads)
    method = CoarseToFine(model, coarse, fine, m1=given.m1, m2=given.m2, rows=given.rows)
    asked = questions(model, "test", given.items, given)
    rows: dict[str, list[float]] = defaultdict(list)
    note("recall")
    usable = [q for q in asked if len(q.ranking.gold) < len(q.ranking.passages)]
    table = measure_passages(model.hf, model, composer, [q.ranking for q in usable], seed=None)
    measure_recall(table, coarse_scores, coarse, [q.hops for q in usable], given.m1, rows)
    asker = Asker(model, method, given)
    for number, question in enumerate(asked):
        note(f"question {number + 1} of {len(asked)}")
        asker.ask(question, number, rows)
    differences(rows)
    return {
        "model": given.model,
        "settings": {key: value for key, value in vars(given).items() if key not in ("json", "model")},
        "coarse_heads": [(str(h), round(float(coarse_scores.values[h]), 3)) for h in coarse],
        "fine_heads": [(str(h), round(float(fine_scores.values[h]), 3)) for h in fine],
        "recall_by_chance": given.m1 * given.heads / given.passages,  # M K / n, if random heads never chose the same passage
        "rows": {key: {"n": len(values), **bootstrap_mean(np.array(values))._asdict()} for key, values in rows.items()},
        "hardware": hardware(),
    }


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    given, console = arguments(), Console(stderr=True)
    with console.status("starting") as status:
        result = measured(given, status.update)
    if given.json:
        print(json.dumps(result))
        return
    table = Table("what", "n", "mean", "95 % interval", title=f"CAFE on {result['model']}")
    for name, row in result["rows"].items():
        table.add_row(name, str(row["n"]), f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
    out = Console()
    out.print(table)
    for key, value in result.items():
        if key != "rows":
            out.print(f"{key}: {value}")


if __name__ == "__main__":
    main()
