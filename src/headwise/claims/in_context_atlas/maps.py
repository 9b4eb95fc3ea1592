"""Head maps of the Atlas on a real or a lab model: what its in-context, parametric, task and retrieval heads are needed for.

    python benchmarks/atlas_maps.py --data FOLDER --model smollm2 --set nq --output FOLDER [--json]
    python benchmarks/atlas_maps.py --model world-6m --set world --output FOLDER [--json]

--data holds `nq-open-oracle/nq-open-oracle.jsonl.gz` and `known-facts-1209/known_1000.json.gz`. What is finished is kept in --output, so that
the same command goes on after an interruption. The claims are registered in `registered/atlas.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from registered import judged

import headwise
from headwise.attention import ablate
from headwise.heads import HeadScores, HeadSet
from headwise.methods.atlas.options import InContext, Retrieval, Task
from headwise.methods.atlas.run import contrast_scores, measure, source_scores
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.passages import Passage
from headwise.prompts.swaps import fact_passages, swap_answers
from headwise.runtime.detector import Run
from headwise.runtime.knowledge_asked import ask, usable
from headwise.runtime.relevance import candidates
from headwise.runtime.rundir import RunDirectory
from headwise.stats.agreement import pearson, split_half_reliability, top_overlap
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import bootstrap_mean, rank_p, sign_flip_test

# Wording for finding heads, wording for the test, which records count.
SETS = {"nq": ("plain", "instructed", "top10"), "facts": ("cloze", "cloze", "top5"), "world": ("plain", "plain", "first")}
LISTS = ("in-context", "parametric", "task", "retrieval")
SHARE, SHARES = 0.1, (0.025, 0.05, 0.1)
RULES = ("gradient", "gim", "attnlrp")
FEW = 64  # records on which rules are compared
DETECT_LEAST, TEST_LEAST = 50, 16
# Columns of what is measured per record.
SWAPPED, BACK, RIGHT, CLOSED = range(4)
CONDITIONS = (
    "swapped passage, swapped answer",
    "swapped passage, right answer",
    "right passage, right answer",
    "no passage, right answer",
)


def world_records(count: int) -> list[KnowledgeRecord]:
    """Facts that lab models know by heart, with a passage that says something else."""
    from headwise_lab.microworld.registry import make_example

    found = []
    for place in range(count):
        made = make_example("contradiction", "test", np.random.default_rng([place, 43]), words=0)
        told, question = made.context_text, "".join(piece.text for piece in made.turns[-1].ask).strip()
        new, known = str(made.info["answer"]), str(made.info["world_value"])
        if told.count(new) == 1 and known not in told:
            fact = made.info["facts"][made.info["gold"][0] - 1]
            more = {"kind": fact.relation, "subject": fact.entity, "name": str(place)}
            found.append(KnowledgeRecord(question, (known,), Passage(told.replace(new, known)), Passage(told), new, **more))
    return found


def half_of(record: KnowledgeRecord) -> int:
    """0 finds heads, 1 tests them; everything about one subject is in one half."""
    return zlib.crc32((record.subject or record.question).encode()) % 2


def records_of(data: Path | None, name: str) -> list[KnowledgeRecord]:
    """All records of a set, with swapped passages."""
    if name == "world":
        return world_records(1200)
    if data is None:
        raise SystemExit(f"the set {name} is read from a folder; give it with --data")
    if name == "nq":
        return swap_answers(read_knowledge(data / "nq-open-oracle" / "nq-open-oracle.jsonl.gz"))
    return swap_answers(fact_passages(read_knowledge(data / "known-facts-1209" / "known_1000.json.gz")))


def maps_of(model: Model, records: Sequence[KnowledgeRecord], given: argparse.Namespace) -> dict[str, HeadScores]:
    """List -> scores; `retrieval` over the last row, `retrieval, all rows` and `task` over all, D by each of `RULES` on few records."""
    wording, _, followed = SETS[given.set]
    options: dict[str, Any] = {"data": records, "wording": wording, "followed": followed, "records": given.records}
    options["min_records"] = min(DETECT_LEAST, given.records)
    run = lambda name: Run(given.output / name, tell(name))  # noqa: E731
    both = measure(model, Task(**options), ("contrast", "sources"), run("maps-all-rows"))
    last = measure(model, Retrieval(rows="last", **options), ("sources",), run("maps-last-row"))
    made = {
        "in-context": contrast_scores(both, InContext(**options)),
        "task": source_scores(both, Task(**options)),
        "retrieval, all rows": source_scores(both, Retrieval(**options)),
        "retrieval": source_scores(last, Retrieval(rows="last", **options)),
    }
    made["parametric"] = replace(made["in-context"], values=-made["in-context"].values, score="parametric")
    few = options | {"records": min(FEW, given.records)}
    for rule in RULES:
        found = measure(model, InContext(rule=rule, **few), ("contrast",), run(f"maps-{rule}"))
        made[f"D by {rule}"] = contrast_scores(found, InContext(rule=rule, **few))
    return made


def chosen_sets(maps: dict[str, HeadScores], draws: int) -> dict[str, HeadSet]:
    """Variant -> heads taken away: the top of every list, without the overlap, and random draws of the same layers."""
    total = int((~np.isnan(maps["in-context"].values)).sum())
    sizes = [max(1, round(share * total)) for share in SHARES]
    main = max(1, round(SHARE * total))
    sets = {"none": HeadSet((), maps["in-context"].shape)}
    for name in LISTS:
        sets |= {f"{name}, top {k}": maps[name].top(k) for k in sizes}
        for draw in range(draws):
            sets[f"{name}, draw {draw}"] = layer_matched_random(maps[name].top(main), maps[name], [draw, 47])
    for name, other in (("in-context", "closed"), ("parametric", "opened")):
        strong = replace(maps["in-context"], values=maps["in-context"].tables[other]).top(main)
        kept = [head for head in maps[name].ranking() if head not in strong][:main]
        sets[f"{name}, without overlap"] = HeadSet(tuple(kept), strong.shape)
    return sets


def tested(model: Model, records: Sequence[KnowledgeRecord], given: argparse.Namespace) -> dict[str, Any]:
    """The prompts of the test: records whose answers the whole model gives."""
    _, wording, followed = SETS[given.set]
    asked = ask(model, InContext(data=records, wording=wording, followed=followed))
    questions: list[Any] = []
    for start in range(0, len(asked.records), 32):
        questions += usable(model, asked, range(start, min(start + 32, len(asked.records))), followed)[0]
        if len(questions) >= given.items:
            break
    questions = questions[: given.items]
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), wording)
    return {
        "count": len(questions),
        "swapped": [question.opened for question in questions],
        "right": [composer.opened(question.record) for question in questions],
        "closed": [question.closed for question in questions],
        "tokens": [(question.swapped, question.right) for question in questions],
    }


def without(model: Model, heads: HeadSet, prompts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Log-probabilities [record, condition] and whether the first token is the most probable one."""
    with ablate(model, heads, mode="zero", scope="all"):
        parts = {name: candidates(model, prompts[name], prompts["tokens"]) for name in ("swapped", "right", "closed")}
    places = (("swapped", 0), ("swapped", 1), ("right", 1), ("closed", 1))
    log_probs = np.stack([parts[name].log_probs[:, column].numpy() for name, column in places], axis=1)
    first = np.stack([parts[name].ranks[:, column].numpy() == 0 for name, column in places], axis=1)
    return {"log_probs": log_probs, "first": first}


def ablations(model: Model, sets: dict[str, HeadSet], prompts: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Variant -> what `without` says; each is kept on disk."""
    told = {"heads": {name: [str(head) for head in chosen] for name, chosen in sets.items()}, "items": prompts["count"]}
    directory = RunDirectory(given.output / "ablations", told | {"set": given.set} | describe_model(model))
    found = {}
    for number, (name, chosen) in enumerate(sets.items()):
        key = f"variant{number:04d}"
        cell = directory.load(key)
        if cell is None:
            cell = (without(model, chosen, prompts), [{"variant": name}])
            directory.save(key, *cell)
        found[name] = cell[0]
        tell("ablations")(number + 1, len(sets), name)
    return found


def claims(maps: dict[str, HeadScores], found: dict[str, Any], count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Results by claim, see `registered.judged`."""
    main = max(1, round(SHARE * int((~np.isnan(maps["in-context"].values)).sum())))
    gate = count >= TEST_LEAST and len(maps["in-context"].runs if maps["in-context"].runs is not None else ()) >= DETECT_LEAST
    whole = found["none"]["log_probs"]

    def random(name: str) -> np.ndarray:
        return np.mean([found[f"{name}, draw {draw}"]["log_probs"] for draw in range(given.draws)], axis=0)

    def test(differences: np.ndarray) -> dict[str, Any]:
        return {"gate": gate, "difference": list(bootstrap_mean(differences)), "p": sign_flip_test(differences)}

    def needed(name: str, variant: str, column: int) -> dict[str, Any]:
        top = found[variant]["log_probs"][:, column]
        draws = [found[f"{name}, draw {draw}"]["log_probs"][:, column].mean() for draw in range(given.draws)]
        return test(random(name)[:, column] - top) | {"p, rank among the draws": rank_p(float(top.mean()), np.array(draws))}

    def spares(name: str, first: int, second: int) -> dict[str, Any]:
        fall = whole - found[f"{name}, top {main}"]["log_probs"]
        return test(fall[:, first] - fall[:, second])

    back = {name: value["log_probs"][:, BACK] > value["log_probs"][:, SWAPPED] for name, value in found.items()}
    draws = np.mean([back[f"in-context, draw {draw}"] for draw in range(given.draws)], axis=0)
    spread = {rule: float(np.nanmax(v := maps[f"D by {rule}"].values) - np.nanmin(v)) for rule in RULES}
    layers = [float(np.mean([head.layer for head in maps[name].top(main)])) for name in ("retrieval, all rows", "retrieval")]
    halves = {name: split_half_reliability(np.asarray(maps[name].runs)) for name in ("in-context", "task", "retrieval")}
    common = top_overlap(maps["in-context"].tables["opened"], maps["in-context"].tables["closed"], main)
    rows = {
        "in_context_needed": needed("in-context", f"in-context, top {main}", SWAPPED),
        "in_context_spares_memory": spares("in-context", SWAPPED, CLOSED),
        "parametric_needed": needed("parametric", f"parametric, top {main}", CLOSED),
        "parametric_spares_context": spares("parametric", CLOSED, SWAPPED),
        "memory_comes_back": test(back[f"in-context, top {main}"] - draws),
        "retrieval_needed": needed("retrieval", f"retrieval, top {main}", SWAPPED),
        "retrieval_spares_memory": spares("retrieval", SWAPPED, CLOSED),
        "task_needed": needed("task", f"task, top {main}", SWAPPED),
        "all_rows_are_shallow": {"gate": gate, "holds": layers[0] + 1 <= layers[1], "mean layers, all rows and last row": layers},
        "rules_separate": {
            "gate": gate,
            "holds": min(spread["gim"], spread["attnlrp"]) > spread["gradient"],
            "spread of D": spread,
        },
        "two_groups": {
            "gate": gate,
            "holds": common <= 0.5,
            "share in common": common,
            "by chance": main / maps["in-context"].values.size,
        },
        "needed_without_overlap": needed("in-context", "in-context, without overlap", SWAPPED),
        "reliable": {"gate": gate, "holds": min(halves.values()) >= 0.8, "split-half correlation": halves},
    }
    return judged({f"atlas.{name}.{given.set}": row for name, row in rows.items()})


def tables(maps: dict[str, HeadScores], found: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """What is told beside the claims: accuracies by variant, and how alike the maps are."""
    accuracy = {
        name: dict(zip(CONDITIONS, value["first"].mean(axis=0).round(3).tolist(), strict=True)) for name, value in found.items()
    }
    log_probs = {
        name: dict(zip(CONDITIONS, value["log_probs"].mean(axis=0).round(3).tolist(), strict=True))
        for name, value in found.items()
    }
    main = next(k for k in sorted((int(name.split(" top ")[1]) for name in found if "in-context, top" in name), reverse=True))
    draws = {
        f"{name}, mean of {given.draws} draws": {
            told: [
                round(float(np.mean([table[f"{name}, draw {i}"][told] for i in range(given.draws)])), 3)
                for table in (accuracy, log_probs)
            ]
            for told in CONDITIONS
        }
        for name in LISTS
    }
    one, two = np.asarray(maps["in-context"].runs)[::2].mean(axis=0), np.asarray(maps["in-context"].runs)[1::2].mean(axis=0)
    return {
        "K": main,
        "first token on top": {name: value for name, value in accuracy.items() if "draw" not in name},
        "log-probability": {name: value for name, value in log_probs.items() if "draw" not in name},
        "random heads [accuracy, log-probability]": draws,
        "top in common": {
            f"{a} and {b}": top_overlap(maps[a].values, maps[b].values, main) for a in LISTS for b in LISTS if a < b
        },
        "top in common, two halves of the records (D)": top_overlap(one, two, main),
        "correlation of D and D from signed sums": pearson(maps["in-context"].values, maps["in-context"].tables["signed"]),
        "mean layer of the top": {name: float(np.mean([head.layer for head in maps[name].top(main)])) for name in LISTS},
        "heads": {name: [str(head) for head in maps[name].top(main)] for name in LISTS},
        "records": {name: [len(np.asarray(scores.runs)), scores.provenance["records_dropped"]] for name, scores in maps.items()},
    }


def tell(what: str) -> Any:
    return lambda done, total, remark: print(f"\r{what}: {done} of {total} ({remark})   ", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--set", choices=SETS, default="nq")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=256, help="that find heads, at most")
    parser.add_argument("--items", type=int, default=32, help="that test them, at most")
    parser.add_argument("--draws", type=int, default=50, help="random draws per list")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    model = headwise.load(given.model)
    halves: tuple[list[KnowledgeRecord], list[KnowledgeRecord]] = ([], [])
    for record in records_of(given.data, given.set):
        halves[half_of(record)].append(record)
    maps = maps_of(model, halves[0], given)
    prompts = tested(model, halves[1], given)
    if not prompts["count"]:
        raise SystemExit("the model gives both answers of no test record; nothing can be tested")
    found = ablations(model, chosen_sets(maps, given.draws), prompts, given)
    judgement = claims(maps, found, prompts["count"], given)
    result = {"model": given.model, "set": given.set, "items": prompts["count"], "claims": judgement} | tables(maps, found, given)
    if given.json:
        print(json.dumps(result, default=float))
        return
    print()
    for key, row in judgement.items():
        print(f"{row['verdict']:<28}{key:<44}{ {name: value for name, value in row.items() if name not in ('gate', 'verdict')} }")
    print(json.dumps({name: value for name, value in result.items() if name != "claims"}, indent=1, default=float))


if __name__ == "__main__":
    main()
