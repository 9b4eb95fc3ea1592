"""Head maps: what a model's in-context, parametric, task and retrieval heads are needed for.

Heads are found on one half of the records; on the other half they are ablated, beside random heads of their layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from headwise.attention import ablate
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.in_context_atlas.map_findings import (
    APART,
    BACK,
    CLOSED,
    LISTS,
    RIGHT,
    RULES,
    SHARE,
    SWAPPED,
    Effects,
    contributors,
    findings,
    tables,
)
from headwise.claims.in_context_atlas.map_records import fact_records, halves, nq_records
from headwise.heads import HeadScores, HeadSet, NoSuccessfulRunError
from headwise.methods.atlas.options import InContext, Retrieval, Task
from headwise.methods.atlas.run import contrast_scores, measure, source_scores
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.runtime.detector import Run
from headwise.runtime.knowledge_asked import ask, usable
from headwise.runtime.relevance import candidates
from headwise.stats.controls import layer_matched_random

# Wording for finding heads, wording for the test, which records count.
SETS = {"nq": ("plain", "instructed", "top10"), "facts": ("cloze", "cloze", "top5"), "world": ("plain", "plain", "first")}
SHARES = (0.025, 0.05, SHARE)
MAPS = ("in-context", "parametric", "task", "retrieval")
FEW = 64  # records on which rules are compared
DETECT_LEAST = 50
Values = np.ndarray


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
        records: That find heads, at most.
        items: That test them, at most.
        draws: Random sets of heads per list.
    """

    records: int
    items: int
    draws: int


def sizes_of(bench: Bench) -> Sizes:
    """Real models take an hour or more per set on two cores, so they get fewer records and draws."""
    whole = Sizes(96, 24, 20) if bench.real else Sizes(256, 32, 50)
    return bench.pick(whole, Sizes(52, 16, 3))  # type: ignore[no-any-return]


def measure_facts(bench: Bench) -> Measured:
    """Claims about head maps from known facts."""
    return measure_set(bench, "facts", fact_records(bench))


def measure_nq(bench: Bench) -> Measured:
    """Claims about head maps from questions of NQ."""
    return measure_set(bench, "nq", nq_records(bench))


def measure_set(bench: Bench, name: str, records: Sequence[KnowledgeRecord]) -> Measured:
    """All claims about head maps on one set of records.

    Raises:
        NotTestable: The model gives both answers of too few records.
    """
    finding, testing = halves(records)
    maps = maps_of(bench, name, finding)
    prompts = tested(bench, name, testing)
    if not prompts["count"]:
        raise NotTestable("the model gives both answers of no test record")
    draws = sizes_of(bench).draws
    found = ablations(bench, name, chosen_sets(maps, draws, bench.seed), prompts)
    gate = {"found": float(len(np.asarray(maps["in-context"].runs))), "tested": float(prompts["count"])}
    effects = Effects(maps, found, draws, gate)
    return Measured({f"atlas.{key}.{name}": one for key, one in findings(effects).items()}, tables(effects))


def maps_of(bench: Bench, name: str, records: Sequence[KnowledgeRecord]) -> dict[str, HeadScores]:
    """List -> scores; `retrieval` over the last row, `retrieval, all rows` and `task` over all, D by each of `RULES` on few records."""
    model, (wording, _, followed), most = bench.model, SETS[name], sizes_of(bench).records
    options: dict[str, Any] = {"data": records, "wording": wording, "followed": followed, "records": most, "seed": bench.seed}
    options["min_records"] = min(DETECT_LEAST, most)

    def run(part: str) -> Run:
        return Run(bench.work / f"{part}{bench.pick('', '-quick')}", bench.report)

    try:
        made = four_maps(model, options, run("maps-all-rows"))
        last = measure(model, Retrieval(rows="last", **options), ("sources",), run("maps-last-row"))
    except NoSuccessfulRunError as why:
        raise NotTestable(str(why)) from why
    made["retrieval, all rows"] = made["retrieval"]
    made["retrieval"] = source_scores(last, Retrieval(rows="last", **options))
    few = options | {"records": min(FEW, most)}
    for rule in RULES:
        found = measure(model, InContext(rule=rule, **few), ("contrast",), run(f"maps-{rule}"))
        made[f"D by {rule}"] = contrast_scores(found, InContext(rule=rule, **few))
    return made


def four_maps(model: Model, options: Mapping[str, Any], run: Run) -> dict[str, HeadScores]:
    """The four maps of `MAPS`, all rows, from the same passes.

    Raises:
        NoSuccessfulRunError: The model gives both answers of too few records.
    """
    both = measure(model, Task(**options), ("contrast", "sources"), run)
    context = contrast_scores(both, InContext(**options))
    parametric = replace(context, values=-context.values, score="parametric")
    return {
        "in-context": context, "parametric": parametric, "task": source_scores(both, Task(**options)),
        "retrieval": source_scores(both, Retrieval(**options)),
    }  # fmt: skip


def chosen_sets(maps: dict[str, HeadScores], draws: int, seed: int) -> dict[str, HeadSet]:
    """Variant -> heads taken away: the top of every list, without the overlap, and random draws of the same layers."""
    total = int((~np.isnan(maps["in-context"].values)).sum())
    sizes = [max(1, round(share * total)) for share in SHARES]
    main = max(1, round(SHARE * total))
    sets = {"none": HeadSet((), maps["in-context"].shape)}
    for name in LISTS:
        sets |= {f"{name}, top {k}": maps[name].top(k) for k in sizes}
        for draw in range(draws):
            sets[f"{name}, draw {draw}"] = layer_matched_random(maps[name].top(main), maps[name], [draw, 47, seed])
    for name, other in (("in-context", "closed"), ("parametric", "opened")):
        strong = contributors(maps["in-context"], other, main)
        kept = HeadSet(tuple([head for head in maps[name].ranking() if head not in strong][:main]), strong.shape)
        sets[f"{name}, {APART}"] = kept
        if name == "in-context" and set(kept) != set(maps[name].top(main)):
            sets |= {f"{name}, {APART}, draw {draw}": layer_matched_random(kept, maps[name], [draw, 48, seed]) for draw in range(draws)}
    return sets


def tested(bench: Bench, name: str, records: Sequence[KnowledgeRecord]) -> dict[str, Any]:
    """The prompts of the test: records whose answers the whole model gives."""
    model, (_, wording, followed), items = bench.model, SETS[name], sizes_of(bench).items
    asked = ask(model, InContext(data=records, wording=wording, followed=followed, seed=bench.seed))
    questions: list[Any] = []
    for start in range(0, len(asked.records), 32):
        questions += usable(model, asked, range(start, min(start + 32, len(asked.records))), followed)[0]
        bench.report(min(len(questions), items), items, "test records")
        if len(questions) >= items:
            break
    questions = questions[:items]
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), wording)
    return {
        "count": len(questions),
        "swapped": [question.opened for question in questions],
        "right": [composer.opened(question.record) for question in questions],
        "closed": [question.closed for question in questions],
        "tokens": [(question.swapped, question.right) for question in questions],
    }


def without(model: Model, heads: HeadSet, prompts: dict[str, Any]) -> dict[str, Values]:
    """Log-probabilities [record, condition] and whether the first token is the most probable one."""
    with ablate(model, heads, mode="zero", scope="all"):
        parts = {name: candidates(model, prompts[name], prompts["tokens"]) for name in ("swapped", "right", "closed")}
    places = {SWAPPED: ("swapped", 0), BACK: ("swapped", 1), RIGHT: ("right", 1), CLOSED: ("closed", 1)}
    columns = [places[i] for i in sorted(places)]
    log_probs = np.stack([parts[name].log_probs[:, column].numpy() for name, column in columns], axis=1)
    first = np.stack([parts[name].ranks[:, column].numpy() == 0 for name, column in columns], axis=1)
    return {"log_probs": log_probs, "first": first}


def ablations(bench: Bench, name: str, sets: dict[str, HeadSet], prompts: dict[str, Any]) -> dict[str, dict[str, Values]]:
    """Variant -> what `without` says; each is kept."""
    told = {"heads": {name: [str(head) for head in chosen] for name, chosen in sets.items()}, "items": prompts["count"]}
    directory = bench.cells("ablations", told | {"set": name} | describe_model(bench.model))
    found = {}
    for number, (variant, chosen) in enumerate(sets.items()):
        key = f"variant{number:04d}"
        cell = directory.load(key)
        if cell is None:
            cell = (without(bench.model, chosen, prompts), [{"variant": variant}])
            directory.save(key, *cell)
        found[variant] = cell[0]
        bench.report(number + 1, len(sets), variant)
    return found
