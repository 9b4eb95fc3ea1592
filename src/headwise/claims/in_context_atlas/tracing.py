"""Where an answer was read, by the probe and its rivals in one run, on the same items: see `trace_sets.py`, `trace_rivals.py`.

benchmarks/trace.py --data FOLDER --model smollm2 --write-train records.jsonl     # what a probe may be fitted on
headwise trace fit smollm2 --data records.jsonl --heads HEADS -o PROBE
benchmarks/trace.py --data FOLDER --model smollm2 --probe PROBE --keep FOLDER --json

With `--keep` finished items are kept, and the same command goes on where it stopped. Claims and rules: `registered/`, family `trace`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, show
from registered import judged
from trace_rivals import Rivals
from trace_sets import Item, hotpot, natural_questions, nq_part, popqa, world

from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads.files import write_atomically
from headwise.heads.headfile import load_heads
from headwise.methods.trace.answer import probe_for, trace
from headwise.models.load import load
from headwise.models.model import describe_model
from headwise.models.names import bundled_model, bundled_names
from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.knowledge import KnowledgeComposer
from headwise.prompts.prompt import Prompt
from headwise.prompts.swaps import swap_answers
from headwise.runtime.answer import decode_rows
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.token_cases import read_newest
from headwise.stats.paired import bootstrap_mean, sign_flip_test
from headwise.stats.probes import bootstrap_auc, reliability
from headwise.stats.ranks import spearman

AMONG, LEAST_ITEMS, LEAST_DROP = 10, 20, 0.5
NQ_SHOTS, SHORT = 3, 40  # solved examples in front, whose passages have at most so many words
AUC, TOP1, OVERHEAD = 0.94, 0.84, 0.15


class Measured:
    """Items of one model, one after the other; each is kept."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.model = load(str(bundled_model(given.model)) if given.model in bundled_names() else given.model)
        self.probe = probe_for(self.model, given.probe)
        heads = load_heads(given.heads).top(given.top) if given.heads else self.probe.heads
        self.rivals = Rivals(self.model, self.probe, heads, [rule for rule in given.rules.split(",") if rule])
        self.composer = KnowledgeComposer(PieceEncoder(self.model.tokenizer), examples=self.examples())
        self.endings = frozenset((*self.rivals.special, *newline_ids(self.model.tokenizer), *self.model.stop_ids))
        what = {
            "model": describe_model(self.model),
            "probe": dict(self.probe.facts),
            "rules": given.rules,
            "heads": [str(h) for h in heads],
        }
        size = {name: getattr(given, name) for name in ("items", "passages", "words", "weights", "subsets")}
        self.kept = RunDirectory(given.keep, what | size) if given.keep else None

    def examples(self) -> list[Any]:
        if self.given.sets == "world":
            return []
        known = [
            record
            for record in nq_part(self.given.data, "weights")
            if record.passage and len(record.passage.text.split()) <= SHORT
        ]
        return sorted(known, key=lambda record: len(record.passage.text))[:NQ_SHOTS]

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = self.kept.load(key) if self.kept else None
        if found is None:
            found = {}, [make()]
            if self.kept:
                self.kept.save(key, *found)
        return found[1][0]

    def items(self, name: str, part: str, count: int) -> list[Item]:
        given = self.given
        if name == "nq":
            return natural_questions(given.data, part, given.passages, given.words, count)
        return hotpot(given.data, given.passages, given.words, count) if name == "hotpotqa" else world(part, count)

    def learn(self, name: str) -> None:
        """Weights per head from ablations, on items of their own."""

        def make() -> dict[str, Any]:
            pairs = []
            for item in self.items("world" if name == "world" else "nq", "weights", self.given.weights):
                prompt = item.prompt(self.composer)
                pairs.append((prompt, prompt.gold))
            started = time.perf_counter()
            weights = self.rivals.learn(pairs, self.given.subsets)
            return {"weights": weights.tolist(), "seconds": time.perf_counter() - started}

        self.rivals.learned = np.array(self.once(f"weights-{name}", make)["weights"])

    def item(self, item: Item, number: int, classes: bool) -> dict[str, Any]:
        """All rivals on one item; classes: also what tells read from remembered, and an item that is not usable costs one pass only."""
        prompt = item.prompt(self.composer)
        told = self.told(item, prompt) if classes else {}
        if classes and not usable([told]):
            return told
        said = self.rivals.all(prompt, prompt.gold, item.record.question, item.answer, number)
        drops = said["leave_one_out"].passages
        rows = {
            name: {
                "top1": int(np.argmax(one.passages)) in item.gold,
                "drop": drops[int(np.argmax(one.passages))],
                "spearman": spearman(np.array(one.passages), np.array(drops)),
                "seconds": one.seconds,
                "offset": one.offset,
                "read": one.read,
            }
            for name, one in said.items()
        }
        out: dict[str, Any] = {"rivals": rows, "largest_drop": max(drops), "probability": said["probe"].more["probability"]}
        return out | told | (self.classes(item, prompt) if classes else {})

    def told(self, item: Item, prompt: Prompt) -> dict[str, Any]:
        """Whether an item is usable: ranks of the answer to be read and of the remembered one among the next tokens."""
        new, old = self.composer.first_token(item.answer), self.composer.first_token(item.record.answers[0])
        seen = read_newest(self.model, self.probe.heads, [prompt], self.probe.weights)
        return {"same": new == old, "read_rank": int(seen.ranks([new])[0]), "remembered_rank": int(seen.ranks([old])[0])}

    def classes(self, item: Item, prompt: Prompt) -> dict[str, Any]:
        """The remembered answer's score on the same rows, and scores of words said beside strange passages and without any."""
        out: dict[str, Any] = {"paired": self.rivals.candidate(prompt, self.composer.first_token(item.record.answers[0]))}
        for name, other in (("unrelated", item.without_gold(self.composer)), ("closed", self.composer.closed(item.record))):
            token = int(read_newest(self.model, self.probe.heads, [other]).logits[0].argmax())
            own = token not in self.endings and (name == "closed" or token not in other.ids)
            out[name] = self.rivals.candidate(other, token) if own else None
        return out

    def remembered(self) -> dict[str, Any]:
        """PopQA without passages: how many of the words that the model says are called read."""
        said = []
        for record in popqa(self.given.data, self.given.popqa):
            prompt = self.composer.closed(record)
            seen = read_newest(self.model, self.probe.heads, [prompt], self.probe.weights)
            token = int(seen.logits[0].argmax())
            if token not in self.endings:
                said.append(float(self.probe.probability(seen.features([token]).astype(float))[0]))
        called = [p > self.probe.band[1] for p in said]
        return {"words": len(said), "called_read": float(np.mean(called)) if called else None, "probabilities": said}

    def overhead(self, tokens: int = 48, length: int = 512, repeats: int = 5) -> dict[str, Any]:
        """Seconds per generated token, traced and plain in turn."""
        ids = np.random.default_rng(0).integers(100, len(self.model.tokenizer) - 1, size=length).tolist()
        prompt, hf = Prompt(tuple(ids)), self.model.hf

        def plain() -> float:
            return self.decode(hf, prompt, tokens)

        def traced() -> float:
            with trace(self.model, self.probe, prompt):
                return self.decode(hf, prompt, tokens)

        times = [(plain(), traced()) for _ in range(repeats)][1:]
        shares = [traced / plain - 1 for plain, traced in times]
        return {
            "plain": statistics.median(t[0] for t in times) / tokens,
            "overhead_per_token": statistics.median(shares),
            "repeats": shares,
        }

    @staticmethod
    def decode(hf: Any, prompt: Prompt, tokens: int) -> float:
        """Seconds of the tokens behind the first one."""
        cache = full_cache(hf)
        with attached(hf):
            (first,) = decode_rows(hf, cache, prompt.ids, (), 1, rows=1)
            started = time.perf_counter()
            decode_rows(hf, cache, first, (), tokens, rows=1)
            return time.perf_counter() - started


def usable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row.get("same") and row.get("read_rank", 0) < AMONG]


def areas(rows: Sequence[dict[str, Any]], probe: Any) -> dict[str, Any]:
    """AUC per kind of negatives and rival, with intervals over items, and the calibration error of the probe."""
    out: dict[str, Any] = {}
    for kind in ("paired", "unrelated", "closed"):
        chosen = [row for row in rows if kind != "paired" or row["remembered_rank"] < AMONG]
        found = {}
        for name in rows[0]["paired"] if rows else ():
            positive = [(i, row["rivals"][name]["read"]) for i, row in enumerate(chosen)]
            negative = [(i, row[kind][name]) for i, row in enumerate(chosen) if row[kind] and name in row[kind]]
            if positive and negative:
                scores = np.array([score for _, score in (*positive, *negative)])
                labels = np.arange(len(scores)) < len(positive)
                groups = np.array([i for i, _ in (*positive, *negative)])
                found[name] = [round(x, 4) for x in bootstrap_auc(scores, labels, groups)] + [len(positive), len(negative)]
                if name == "probe":
                    error, _ = reliability(probe.calibration.probability(scores), labels)
                    found["calibration_error"] = round(error, 4)
        out[kind] = found
    return out


def table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rival -> its means over items."""
    out = {}
    for name in rows[0]["rivals"] if rows else ():
        mine = [row["rivals"][name] for row in rows]
        offsets = [one["offset"] for one in mine if one["offset"] is not None]
        ranks = [one["spearman"] for one in mine if not np.isnan(one["spearman"])]
        out[name] = {
            "top1_passage": [round(x, 4) for x in bootstrap_mean(np.array([float(one["top1"]) for one in mine]))],
            "top1_token": round(float(np.mean([offset == 0 for offset in offsets])), 4) if offsets else None,
            "token_window_2": round(float(np.mean([abs(offset) <= 2 for offset in offsets])), 4) if offsets else None,
            "drop_without_top": round(float(np.mean([one["drop"] for one in mine])), 4),
            "spearman_leave_one_out": round(float(np.mean(ranks)), 4) if ranks else None,
            "seconds_per_answer": round(statistics.median(one["seconds"] for one in mine), 4),
        }
    return out


def verdicts(nq: Any, other: dict[str, Any], popqa_found: Any, speed: Any) -> dict[str, Any]:
    """The registered claims by their rules."""
    found: dict[str, dict[str, Any]] = {}
    rows, numbers, area = nq["rows"], nq["rivals"], nq["auc"]
    enough, drop = len(rows) >= LEAST_ITEMS, numbers["leave_one_out"]["drop_without_top"] >= LEAST_DROP
    for kind in ("paired", "unrelated"):
        value = area[kind].get("probe")
        gate = value is not None and (value[3] >= LEAST_ITEMS if kind == "paired" else enough)
        found[f"trace.auc_{kind}.nq"] = {"gate": bool(gate), "holds": bool(value and value[0] >= AUC), "value": value}
    for name, one in {"nq": numbers, **{name: each["rivals"] for name, each in other.items() if name == "hotpotqa"}}.items():
        caused = one["leave_one_out"]["drop_without_top"] >= LEAST_DROP
        found[f"trace.top1_passage.{name}"] = {
            "gate": bool(caused),
            "holds": bool(one["probe"]["top1_passage"][0] >= TOP1),
            "value": one["probe"]["top1_passage"],
        }

    def difference(a: str, b: str) -> np.ndarray:
        return np.array([float(row["rivals"][a]["top1"]) - float(row["rivals"][b]["top1"]) for row in rows])

    for name in ("rows", "bm25", "learned"):
        values = difference("probe", name)
        found[f"trace.probe_above_{name}.nq"] = {
            "gate": bool(drop),
            "difference": list(bootstrap_mean(values)),
            "p": sign_flip_test(values),
        }
    if "gim" in numbers:
        values = difference("gim", "probe")
        found["trace.relevance_as_good.nq"] = {
            "gate": bool(drop),
            "holds": bool(values.mean() >= 0),
            "difference": list(bootstrap_mean(values)),
        }
    rank = numbers["probe"]["spearman_leave_one_out"]
    found["trace.ranks_as_leave_one_out.nq"] = {"gate": bool(drop), "holds": rank is not None and bool(rank >= 0.5), "value": rank}
    share = popqa_found["called_read"]
    found["trace.popqa_is_remembered.popqa"] = {
        "gate": share is not None,
        "holds": share is not None and bool(share <= 0.1),
        "value": share,
    }
    found["trace.overhead.generation"] = {
        "gate": True,
        "holds": bool(speed["overhead_per_token"] <= OVERHEAD),
        "value": speed["overhead_per_token"],
    }
    return judged(found)


def write_train(given: argparse.Namespace) -> None:
    """What a probe may be fitted on, as JSON lines for `headwise trace fit`."""
    if given.sets == "world":
        records = [item.record for item in world("train", given.items * 50)]
    else:
        records = swap_answers(nq_part(given.data, "train"), seed=1)
    write_atomically(given.write_train, ("\n".join(json.dumps(record.row()) for record in records) + "\n").encode())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with nq-open-oracle, hotpotqa-distractor and popqa-1000")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sets", default="nq,hotpotqa", help="nq, hotpotqa; or world, for lab models")
    parser.add_argument("--probe", type=Path, help="of `headwise trace fit`; without one: that which comes with headwise")
    parser.add_argument("--heads", type=Path, help="head file for the attention rows; without one: the probe's heads")
    parser.add_argument("--top", type=int, default=16)
    parser.add_argument("--rules", default="gradient,gim")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--first", type=int, default=0, help="leave out so many items, such as those of an earlier try")
    parser.add_argument("--popqa", type=int, default=60)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--words", type=int, default=60, help="passages are cut to so many words")
    parser.add_argument("--weights", type=int, default=10, help="items that the learned weights use")
    parser.add_argument("--subsets", type=int, default=6, help="random halves of the passages per such item")
    parser.add_argument("--write-train", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for finished items")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = options()
    torch.manual_seed(0)
    if given.write_train:
        write_train(given)
        return
    run = Measured(given)
    result: dict[str, Any] = {
        "model": run.model.name,
        "probe": {k: run.probe.facts[k] for k in ("auc", "records", "localisation")},
        "hardware": hardware(),
    }
    sets: dict[str, Any] = {}
    for name in given.sets.split(","):
        run.learn(name)
        items, classes = run.items(name, "test", given.first + given.items), name != "hotpotqa"
        rows = [
            run.once(f"{name}-{i}", lambda i=i, item=item, classes=classes: run.item(item, i, classes))
            for i, item in list(enumerate(items))[given.first :]
        ]
        good = usable(rows) if classes else rows
        sets[name] = {"items": len(rows), "usable": len(good), "rows": good, "rivals": table(good)} | (
            {"auc": areas(good, run.probe)} if classes else {}
        )
    speed = run.once("overhead", run.overhead)
    first = next(iter(sets.values()))
    result["auc"] = {kind: found.get("probe") for kind, found in first.get("auc", {}).items()}
    result["top1_passage"] = {name: each["rivals"].get("probe", {}).get("top1_passage") for name, each in sets.items()}
    result["overhead_per_token"] = speed["overhead_per_token"]
    if given.data and "nq" in sets and sets["nq"]["rows"]:
        told = run.once("popqa", run.remembered)
        result |= {
            "popqa": {k: v for k, v in told.items() if k != "probabilities"},
            "claims": verdicts(sets["nq"], sets, told, speed),
        }
    result["sets"] = {name: {k: v for k, v in each.items() if k != "rows"} for name, each in sets.items()}
    show(result, given.json)


if __name__ == "__main__":
    main()
