"""Function vectors, forced copying and conflicts of memory and passage on a real model: the registered claims of the family `steer`.

    headwise detect copy smollm2 -o copy.json; headwise detect in-context smollm2 --data NQ -o context.json; headwise detect parametric ...
    python benchmarks/steer_real.py --data FOLDER --model smollm2 --output FOLDER --copy-heads copy.json --context-heads context.json \\
        --memory-heads memory.json --json

Finished parts stay in --output, and the same command goes on there. Parts without their head file are left out and said to be. About 16 minutes
of one thread on SmolLM2-135M (task vectors 5, facts 3, copying 3, conflicts 5).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware
from prefilled import Prefilled, prefilled
from registered import CLAIMS, judged
from registered.steer import RELATIONS
from steer_sets import (
    CHOOSE_PAIRS,
    NQ,
    PAIRS,
    SCALE_PAIRS,
    contradicted,
    known_pairs,
    relation_task,
    relations,
    stretches,
)

from headwise.attention import HeadVectors, force_copy, insert
from headwise.attention.plan import attached
from headwise.caches.shared import fork
from headwise.evaluation.conflict import ConflictOptions, conflict_curves
from headwise.evaluation.steered import steered_answers
from headwise.evaluation.variants import describe_scores
from headwise.heads import HeadScores, load_heads
from headwise.methods.vectors.effects import vector_effects
from headwise.methods.vectors.extract import extract_vectors
from headwise.methods.vectors.search import SCALES, VectorItem, random_vectors, wanted_first
from headwise.models.forward import forward
from headwise.models.load import load
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, read_knowledge
from headwise.prompts.swaps import swap_answers
from headwise.runtime.rundir import RunDirectory
from headwise.stats.controls import layer_matched_random
from headwise.stats.metrics import unigram_recall
from headwise.stats.paired import bootstrap_mean, sign_flip_test

DRAWS, CONFLICT_DRAWS = 20, 5
TASK_HEADS, FACT_HEADS, COPY_HEADS = 27, 13, 11
KS, FEW, MANY = (5, 16, 26), 5, 26
COPIED, ANSWER = 10, 4  # new tokens
NQ_RECORDS, NQ_TOKENS, NQ_LEAST = 50, 220, 30
Cell = dict[str, np.ndarray]


class Run:
    """One run: the model, its data, and the cells that are done."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.model = given, load(given.model)
        self.composer = KnowledgeComposer(PieceEncoder(self.model.tokenizer), "cloze")
        self.files = {name: getattr(given, f"{name}_heads") for name in ("copy", "context", "memory")}

    def cell(self, name: str, make: Callable[[], Cell], *heads: str) -> Cell:
        """A finished part, or one that is made now."""
        told = describe_model(self.model) | {"fingerprint": self.model.fingerprint, "seed": self.given.seed, "version": 2}
        told |= {f"{one} heads": describe_scores(self.scores(one)) for one in heads}
        kept = RunDirectory(self.given.output / name.replace(" ", "-"), told)
        found = kept.load("all")
        if found is None:
            sys.stderr.write(f"{name} ...\n")
            kept.save("all", make(), [])
            found = kept.load("all")
        assert found is not None
        return found[0]

    def scores(self, name: str) -> HeadScores:
        return load_heads(self.files[name])


def task_vectors(run: Run, name: str) -> Cell:
    """Reported items of one relation: shown (with examples), plain, steered, average [n] and random [draws, n]."""
    model, seed = run.model, run.given.seed
    task = relation_task(model, relations(run.given.data)[name], seed)
    every = extract_vectors(model, None, task.sources[0])
    heads = vector_effects(model, every, [item.prompt for item in task.choosing]).top(TASK_HEADS)
    scale = _best_scale(run, every.of(heads), task.scaling)
    average = extract_vectors(model, heads, task.sources, average=True)
    variants = [every.of(heads), average, *random_vectors(every, heads, DRAWS, seed)]
    right = _right(model, task.reported, variants, scale)
    return {
        "shown": _right(model, task.shown, [None], 1.0)[0],
        "plain": _right(model, task.reported, [None], 1.0)[0],
        "steered": right[0],
        "average": right[1],
        "random": right[2:],
        "scale": np.array(scale),
        "heads": np.array([tuple(head) for head in heads]),
    }


def parametric_vectors(run: Run) -> Cell:
    """Reported pairs: plain, steered [n] and random [draws, n], whether the source's object is said."""
    model, seed = run.model, run.given.seed
    pairs = known_pairs(model, run.composer, run.given.data, seed)
    choose, scaling = pairs[:CHOOSE_PAIRS], pairs[CHOOSE_PAIRS : CHOOSE_PAIRS + SCALE_PAIRS]
    reported = pairs[CHOOSE_PAIRS + SCALE_PAIRS :][:PAIRS]
    if not reported:
        return {"pairs": np.array(len(pairs))}

    def asked(source: Any, target: Any) -> VectorItem:
        prompt = run.composer.closed(target)
        return VectorItem(type(prompt)(prompt.ids, prompt.spans, run.composer.answer_ids(source.answers[0])), source.answers)

    effects = []
    for source, target in choose:
        every = extract_vectors(model, None, run.composer.closed(source))
        effects.append(vector_effects(model, every, [asked(source, target).prompt]).values)
    heads = HeadScores(np.mean(effects, axis=0), "vector effect").top(FACT_HEADS)
    tried = np.zeros(len(SCALES))
    for source, target in scaling:
        vectors = extract_vectors(model, heads, run.composer.closed(source))
        tried += [_right(model, [asked(source, target)], [vectors], scale)[0, 0] for scale in SCALES]
    scale = SCALES[int(tried.argmax())]
    rows = []
    for source, target in reported:
        every = extract_vectors(model, None, run.composer.closed(source))
        variants = [every.of(heads), *random_vectors(every, heads, DRAWS, seed)]
        item = asked(source, target)
        rows.append([_right(model, [item], [None], 1.0)[0, 0], *_right(model, [item], variants, scale)[:, 0]])
    table = np.array(rows).T
    return {"pairs": np.array(len(pairs)), "plain": table[0], "steered": table[1], "random": table[2:], "scale": np.array(scale)}


def copying(run: Run) -> Cell:
    """Way -> recall of the title [stretch]; random draws of the same ways [draws, stretch]."""
    model, found = run.model, stretches(run.model, run.given.seed)
    scores = run.scores("copy")
    heads = scores.top(COPY_HEADS)
    draws = [layer_matched_random(heads, scores, [run.given.seed, draw]) for draw in range(DRAWS)]
    prompts, titles = [prompt for prompt, _ in found], [title for _, title in found]
    forced = partial(_copied, model, prompts, titles, prefilled(model, [prompt.ids for prompt in prompts]))
    ways: dict[str, dict[str, Any]] = {"two_step": {}, "mix": {"how": "mix"}, "no boost": {"beta": 0.0}}
    out = {way: forced(heads, given) for way, given in ways.items()}
    out["plain"] = forced(None, {})
    for way in ("two_step", "mix"):
        out[f"random {way}"] = np.stack([forced(drawn, ways[way]) for drawn in draws])
    return {name.replace(" ", "_"): values for name, values in out.items()}


def conflict(run: Run, side: str, top: tuple[int, ...]) -> Cell:
    """Contradicted facts: memory and passage [variant, record], and kind and K of each variant."""
    records = contradicted(run.model, run.composer, run.given.data, run.given.seed)
    options = ConflictOptions(top, controls=CONFLICT_DRAWS, seed=run.given.seed, max_new_tokens=ANSWER)
    return _curves(run, side, records, run.composer, options)


def conflict_nq(run: Run) -> Cell:
    """The same on Wikipedia passages whose answer was swapped."""
    composer = KnowledgeComposer(PieceEncoder(run.model.tokenizer), "instructed")
    records = [one for one in swap_answers(read_knowledge(run.given.data / NQ), run.given.seed) if one.swapped is not None]
    order = [records[i] for i in np.random.default_rng([run.given.seed, 86]).permutation(len(records))[: 12 * NQ_RECORDS]]
    short = [one for one in order if len(composer.opened(one, swapped=True).ids) <= NQ_TOKENS][:NQ_RECORDS]
    options = ConflictOptions(
        (MANY,), scope="answer", controls=CONFLICT_DRAWS, seed=run.given.seed, max_new_tokens=12, least=NQ_LEAST
    )
    return _curves(run, "context", short, composer, options)


def _curves(run: Run, side: str, records: Sequence[Any], composer: KnowledgeComposer, options: ConflictOptions) -> Cell:
    found = conflict_curves(run.model, {side: run.scores(side)}, records, composer, options)
    kinds = [f"{variant.kind} {variant.k}" for variant in found.variants[side]]
    return dict(found.values[side]) | {"kinds": np.array(kinds)}


def _best_scale(run: Run, vectors: HeadVectors, items: Sequence[VectorItem]) -> float:
    """Most items answered as wanted; of equal scales the one nearest to 1."""
    shares = {scale: float(_right(run.model, items, [vectors], scale).mean()) for scale in SCALES}
    return min(SCALES, key=lambda scale: (-shares[scale], scale))


def _right(model: Model, items: Sequence[VectorItem], variants: Sequence[Any], scale: float) -> np.ndarray:
    """[variant, item] 1 where an answer begins as wanted; the variant None is the model as it is."""

    def enter(chosen: Sequence[Any], last: int) -> Any:
        return attached(model) if chosen[0] is None else insert(model, list(chosen), "replace", scale, last)

    found = steered_answers(model, [item.prompt for item in items], variants, enter, max_new_tokens=ANSWER)
    return np.array(
        [[wanted_first(one.text, item.wanted) for one in row] for item, row in zip(items, found, strict=True)], dtype=float
    ).T


@torch.no_grad()
def _copied(
    model: Model, prompts: Sequence[Any], titles: Sequence[str], start: Prefilled, heads: Any, given: dict[str, Any]
) -> np.ndarray:
    """[stretch] recall of the title in what is generated, all stretches as rows of one batch."""
    mask, ids, pads = start.mask, start.rest, start.pads
    cache, said = fork(start.cache), []
    spans = [
        [(prompt.span("title").start + pad, prompt.span("title").stop + pad)] for prompt, pad in zip(prompts, pads, strict=True)
    ]
    with force_copy(model, heads, spans, **given) if heads else attached(model):
        for step in range(COPIED):
            places = mask.sum(dim=1, keepdim=True) - 1
            logits = forward(model.hf, ids, cache, attention_mask=mask, position_ids=places, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(dim=-1)
            said.append(ids[:, 0].tolist())
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1) if step + 1 < COPIED else mask
    texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in np.array(said).T.tolist()]
    return np.array([unigram_recall(text, title) for text, title in zip(texts, titles, strict=True)])


# ---- judging


def difference_of(difference: np.ndarray, gate: bool, least: float = 0.0, **more: Any) -> dict[str, Any]:
    """A claim whose rule is that a mean difference reaches `least`."""
    mean = [round(x, 4) for x in bootstrap_mean(difference)]
    return {"gate": bool(gate), "difference": mean, "p": sign_flip_test(difference), "least": least, **more}


def judge_tasks(cells: dict[str, Cell]) -> dict[str, Any]:
    passing = {name: cell for name, cell in cells.items() if cell["shown"].mean() >= 0.5}
    gate = len(passing) >= 3
    shares = {
        name: {key: round(float(cell[key].mean()), 3) for key in ("shown", "plain", "steered", "average", "random")}
        for name, cell in cells.items()
    }
    shares = {name: row | {"scale": float(cells[name]["scale"])} for name, row in shares.items()}
    out: dict[str, Any] = {"steer.task_vectors": {"gate": False, "found": shares}}
    past, antonym = (cells.get(name) for name in ("verb past tense", "adjective antonym"))
    if past is not None and antonym is not None:
        one, other = bootstrap_mean(past["steered"]), bootstrap_mean(antonym["steered"])
        able = {"verb past tense", "adjective antonym"} <= passing.keys()
        out["steer.task_vectors.antonyms"] = {"gate": able, "holds": one.low > other.high, "found": [list(one), list(other)]}
    if not gate:
        return out | {key: {"gate": False} for key in ("steer.task_vectors.none", "steer.task_vectors.one_prompt")}
    joined = {
        key: np.concatenate([cell[key] for cell in passing.values()], axis=-1)
        for key in ("steered", "plain", "average", "random")
    }
    out["steer.task_vectors"] = difference_of(joined["steered"] - joined["random"].mean(axis=0), gate, 0.3, found=shares)
    out["steer.task_vectors.none"] = difference_of(joined["steered"] - joined["plain"], gate, 0.4)
    difference = [round(x, 4) for x in bootstrap_mean(joined["steered"] - joined["average"])]
    out["steer.task_vectors.one_prompt"] = {"gate": gate, "holds": difference[0] >= -0.1, "found": difference}
    return out


def judge_facts(cell: Cell) -> dict[str, Any]:
    pairs = int(cell["pairs"])
    if "steered" not in cell:
        return {"steer.parametric_vectors": {"gate": False, "found": {"pairs": pairs}}}
    shares = {key: round(float(cell[key].mean()), 3) for key in ("plain", "steered", "random")} | {
        "scale": float(cell["scale"]),
        "pairs": pairs,
    }
    return {
        "steer.parametric_vectors": difference_of(cell["steered"] - cell["random"].mean(axis=0), pairs >= 40, 0.1, found=shares)
    }


def judge_copying(cell: Cell) -> dict[str, Any]:
    out = {}
    for way in ("two_step", "mix"):
        shares = {key: round(float(cell[key].mean()), 3) for key in ("plain", way, f"random_{way}")}
        out[f"steer.copying.{way}"] = difference_of(cell[way] - cell[f"random_{way}"].mean(axis=0), True, 0.5, found=shares)
    found = {"two_step": round(float(cell["two_step"].mean()), 3), "no boost": round(float(cell["no_boost"].mean()), 3)}
    out["steer.copying.boost"] = difference_of(cell["two_step"] - cell["no_boost"], cell["two_step"].mean() >= 0.2, found=found)
    return out


def at(cell: Cell, counted: str, kind: str) -> np.ndarray:
    """[record] mean over the variants of a kind, such as `top 5`."""
    return np.asarray(cell[counted][cell["kinds"] == kind].mean(axis=0))


def shares_of(cell: Cell) -> dict[str, Any]:
    return {
        kind: {one: round(float(at(cell, one, kind).mean()), 3) for one in ("memory", "passage")}
        for kind in dict.fromkeys(cell["kinds"].tolist())
    }


def judge_conflict(context: Cell | None, memory: Cell | None, nq: Cell | None) -> dict[str, Any]:
    out = {}
    for family, cell, few in (("conflict", context, FEW), ("conflict_nq", nq, MANY)):
        if cell is None:
            continue
        gate = float(at(cell, "passage", "none 0").mean()) >= 0.5 and len(cell["memory"][0]) >= (
            50 if family == "conflict" else NQ_LEAST
        )
        falls = at(cell, "passage", f"random {MANY}") - at(cell, "passage", f"top {MANY}")
        rises = at(cell, "memory", f"top {few}") - at(cell, "memory", f"random {few}")
        out[f"steer.{family}.passage_falls"] = difference_of(falls, gate, 0.3, found=shares_of(cell))
        out[f"steer.{family}.memory_returns"] = difference_of(rises, gate)
        if family == "conflict":
            curve = [float(at(cell, "memory", f"top {k}").mean()) for k in KS]
            out["steer.conflict.not_monotonic"] = {
                "gate": gate,
                "holds": max(curve) > curve[-1],
                "found": [round(x, 3) for x in curve],
            }
            if memory is not None:
                change = bootstrap_mean(at(memory, "passage", f"top {FEW}") - at(memory, "passage", "none 0"))
                out["steer.conflict.passage_stays"] = {
                    "gate": gate,
                    "holds": change.high >= 0,
                    "found": [round(x, 4) for x in change],
                }
    return out


def measure(run: Run) -> tuple[dict[str, Any], list[str]]:
    """What was found by claim, and which parts are left out."""
    left_out = []
    found = judge_tasks({name: run.cell(f"task {name}", partial(task_vectors, run, name)) for name in RELATIONS})
    found |= judge_facts(run.cell("facts", partial(parametric_vectors, run)))
    if run.files["copy"]:
        found |= judge_copying(run.cell("copying", partial(copying, run), "copy"))
    else:
        left_out.append("copying (--copy-heads)")
    context = memory = nq = None
    if run.files["context"]:
        context = run.cell("conflict", partial(conflict, run, "context", KS), "context")
        nq = run.cell("conflict nq", partial(conflict_nq, run), "context")
    else:
        left_out.append("conflicts (--context-heads)")
    if run.files["memory"]:
        memory = run.cell("conflict memory", partial(conflict, run, "memory", (FEW,)), "memory")
    else:
        left_out.append("conflicts without parametric heads (--memory-heads)")
    return found | judge_conflict(context, memory, nq), left_out


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the data sets (relations-lre, known-facts-1209, nq-open-oracle)"
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--output", type=Path, required=True, help="folder where finished parts are kept")
    parser.add_argument("--copy-heads", type=Path, help="head file of headwise detect copy")
    parser.add_argument("--context-heads", type=Path, help="head file of headwise detect in-context")
    parser.add_argument("--memory-heads", type=Path, help="head file of headwise detect parametric")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    run = Run(given)
    found, left_out = measure(run)
    verdicts = judged(found)
    if given.json:
        print(json.dumps({"model": describe_model(run.model), **hardware(), "left_out": left_out, "claims": verdicts}, indent=1))
        return
    for claim in CLAIMS:
        if claim.key in verdicts:
            one = verdicts[claim.key]
            print(f"{claim.key}: {one['verdict']}  {one.get('difference', '')}  {one.get('found', '')}")
    for part in left_out:
        print(f"left out: {part}")


if __name__ == "__main__":
    main()
