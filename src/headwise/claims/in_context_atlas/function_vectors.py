"""Function vectors: relations done without examples, and remembered attributes carried to another subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from headwise.attention import HeadVectors, insert
from headwise.attention.plan import attached
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench
from headwise.claims.in_context_atlas.declared_steer import RELATIONS
from headwise.claims.in_context_atlas.parts import Cell, ends, known_facts, once, paired, share
from headwise.claims.in_context_atlas.steering_sets import LRE, known_pairs, relation_task, relations
from headwise.evaluation.steered import steered_answers
from headwise.heads import HeadScores
from headwise.methods.vectors.effects import vector_effects
from headwise.methods.vectors.extract import extract_vectors
from headwise.methods.vectors.search import SCALES, VectorItem, random_vectors, wanted_first
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer

TASK_HEADS, FACT_HEADS = 27, 13  # of 270
CHOOSE_PAIRS, SCALE_PAIRS = 4, 8
LEAST_RIGHT, LEAST_RELATIONS = 0.5, 3
ANSWER = 4  # new tokens
SHOWN = ("shown", "plain", "steered", "average", "random")
PAST, ANTONYM = "verb past tense", "adjective antonym"


def measured(bench: Bench) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Findings about function vectors, and the tables behind them."""
    draws, most, pairs = bench.pick((20, 20, 60), (4, 8, 40))
    told = {"draws": draws, "reported": most, "pairs": pairs}
    cells = {}
    for number, name in enumerate(RELATIONS):
        bench.report(number, len(RELATIONS) + 2, name)
        cells[name] = once(bench, f"task {name}", partial(task_vectors, bench, name, draws, most), told)
    bench.report(len(RELATIONS), len(RELATIONS) + 2, "parametric vectors")
    facts = once(bench, "facts", partial(parametric_vectors, bench, draws, pairs), told)
    return judge_tasks(cells) | judge_facts(facts), {"task vectors": {name: shares(cell) for name, cell in cells.items()}, "facts": shares(facts)}


def task_vectors(bench: Bench, name: str, draws: int, most: int) -> Cell:
    """Reported items of one relation: shown (with examples), plain, steered, average [n] and random [draws, n]."""
    model, seed = bench.model, bench.seed
    task = relation_task(model, relations(bench.folder("relations-lre") / LRE)[name], seed, most)
    every = extract_vectors(model, None, task.sources[0])
    heads = vector_effects(model, every, [item.prompt for item in task.choosing]).top(share(model, TASK_HEADS))
    scale = _best_scale(model, every.of(heads), task.scaling)
    average = extract_vectors(model, heads, task.sources, average=True)
    variants = [every.of(heads), average, *random_vectors(every, heads, draws, seed)]
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


def parametric_vectors(bench: Bench, draws: int, most: int) -> Cell:
    """Reported pairs: plain, steered [n] and random [draws, n], whether the source's object is said."""
    model, seed = bench.model, bench.seed
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), "cloze")
    pairs = known_pairs(model, composer, known_facts(bench), seed)
    choose, scaling = pairs[:CHOOSE_PAIRS], pairs[CHOOSE_PAIRS : CHOOSE_PAIRS + SCALE_PAIRS]
    reported = pairs[CHOOSE_PAIRS + SCALE_PAIRS :][:most]
    if not reported:
        return {"pairs": np.array(len(pairs))}

    def asked(source: Any, target: Any) -> VectorItem:
        prompt = composer.closed(target)
        return VectorItem(type(prompt)(prompt.ids, prompt.spans, composer.answer_ids(source.answers[0])), source.answers)

    effects = []
    for source, target in choose:
        every = extract_vectors(model, None, composer.closed(source))
        effects.append(vector_effects(model, every, [asked(source, target).prompt]).values)
    heads = HeadScores(np.mean(effects, axis=0), "vector effect").top(share(model, FACT_HEADS))
    tried = np.zeros(len(SCALES))
    for source, target in scaling:
        vectors = extract_vectors(model, heads, composer.closed(source))
        tried += [_right(model, [asked(source, target)], [vectors], scale)[0, 0] for scale in SCALES]
    scale = SCALES[int(tried.argmax())]
    rows = []
    for source, target in reported:
        every = extract_vectors(model, None, composer.closed(source))
        variants = [every.of(heads), *random_vectors(every, heads, draws, seed)]
        item = asked(source, target)
        rows.append([_right(model, [item], [None], 1.0)[0, 0], *_right(model, [item], variants, scale)[:, 0]])
    table = np.array(rows).T
    return {"pairs": np.array(len(pairs)), "plain": table[0], "steered": table[1], "random": table[2:], "scale": np.array(scale)}


def _best_scale(model: Model, vectors: HeadVectors, items: Sequence[VectorItem]) -> float:
    """Most items answered as wanted; of equal scales the one nearest to 1."""
    found = {scale: float(_right(model, items, [vectors], scale).mean()) for scale in SCALES}
    return min(SCALES, key=lambda scale: (-found[scale], scale))


def _right(model: Model, items: Sequence[VectorItem], variants: Sequence[Any], scale: float) -> np.ndarray:
    """[variant, item] 1 where an answer begins as wanted; the variant None is the model as it is."""

    def enter(chosen: Sequence[Any], last: int) -> Any:
        return attached(model) if chosen[0] is None else insert(model, list(chosen), "replace", scale, last)

    found = steered_answers(model, [item.prompt for item in items], variants, enter, max_new_tokens=ANSWER)
    return np.array(
        [[wanted_first(one.text, item.wanted) for one in row] for item, row in zip(items, found, strict=True)], dtype=float
    ).T


# ---- judging


def shares(cell: Cell) -> dict[str, Any]:
    """Shares right of one part, its scale, and how many pairs there were."""
    rows: dict[str, Any] = {key: round(float(cell[key].mean()), 4) for key in SHOWN if key in cell}
    return rows | {key: float(cell[key]) for key in ("scale", "pairs") if key in cell}


def judge_tasks(cells: Mapping[str, Cell]) -> dict[str, Finding]:
    """Findings of relations; `task_vectors` says what a cell holds."""
    passing = {name: cell for name, cell in cells.items() if cell["shown"].mean() >= LEAST_RIGHT}
    past, antonym = cells[PAST], cells[ANTONYM]
    one, other = ends(past["steered"]), ends(antonym["steered"])
    apart: dict[str, Number] = {"gap": round(one[1] - other[2], 4), "past_tenses": one, "antonyms": other}
    apart |= {"past_tenses_shown": float(past["shown"].mean()), "antonyms_shown": float(antonym["shown"].mean())}
    found = {"steer.task_vectors.antonyms": Finding(apart)}
    if not passing:
        why = "with ten examples the model answers half of the prompts of no relation"
        return found | {f"steer.task_vectors{name}": Finding.none(why) for name in ("", ".none", ".one_prompt")}
    joined = {key: np.concatenate([cell[key] for cell in passing.values()], axis=-1) for key in SHOWN}
    steered, drawn = joined["steered"], joined["random"].mean(axis=0)
    beside: dict[str, Number] = {"relations": float(len(passing)), "steered": ends(steered)}
    found["steer.task_vectors"] = paired(steered - drawn, random=ends(drawn), **beside)
    found["steer.task_vectors.none"] = paired(steered - joined["plain"], none=ends(joined["plain"]), **beside)
    one_prompt: dict[str, Number] = {"difference": ends(steered - joined["average"]), "average": ends(joined["average"])}
    return found | {"steer.task_vectors.one_prompt": Finding(one_prompt | beside)}


def judge_facts(cell: Cell) -> dict[str, Finding]:
    """The finding of carried attributes; `parametric_vectors` says what the cell holds."""
    pairs = int(cell["pairs"])
    if "steered" not in cell:
        return {"steer.parametric_vectors": Finding.none(f"the model knows only {pairs} pairs of facts of one relation")}
    drawn = cell["random"].mean(axis=0)
    beside: dict[str, Number] = {"random": ends(drawn), "steered": ends(cell["steered"]), "none": ends(cell["plain"]), "pairs": float(pairs)}
    return {"steer.parametric_vectors": paired(cell["steered"] - drawn, **beside)}
