"""The reasoning claim: written steps need retrieval heads, answers from memory do not (Wu et al. 2024, sec. 4.3 and fig. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.variants import Kind, Variant, distinct_sets, head_variants
from headwise.heads import HeadScores, HeadSet, PromptError
from headwise.models.model import Model
from headwise_lab.eval_tasks import NotMeasured
from headwise_lab.properties.answers import SPECS, Answers, Asked, Quiz, answer_items, describe_answers, lab_quiz
from headwise_lab.properties.causal import DRAWN, MUCH_LESS, row_of, usable_top
from headwise_lab.properties.detection import Evidence, open_directory
from headwise_lab.properties.facts import Asker, read_relations
from headwise_lab.properties.paper import REMOVED_MORE
from headwise_lab.properties.settings import RealSettings, Settings, near_share
from headwise_lab.properties.verdict import Check, Property, missing, p_text, span_of

ABLE = 0.5  # share right of the whole model below which a loss says nothing
FLOOR = 0.3  # the same for direct answers, which models find hard
HALF, HARDLY, LEVEL = 0.5, 0.25, 0.05  # of the whole model's share; of the loss on written steps; of tests
KEEPS = f"keeps at least {HALF:g} of its share"
DRAWS, SAMPLES = 2_000, 2
EVERYWHERE = ("steps", "closed_book")  # tasks also measured with heads ablated at every position


def measure(model: Model, scores: HeadScores, settings: Settings) -> dict[str, Any]:
    """Answers of every task without the top K, K random and the K weakest heads.

    Args:
        model: With its tokenizer.
        scores: Of its heads, found on other texts.
        settings: Sizes, mode and scope.

    Returns:
        Plain data with one entry per task and scope in `tasks`; or `why` there is none.
    """
    top = usable_top(settings, scores)
    if not top:
        return {"why": f"too few heads for a control: {len(scores.ranking())}"}
    heads = len(scores.ranking())
    k = near_share(top, heads, REMOVED_MORE)
    rows: list[dict[str, Any]] = []
    try:
        for task in SPECS:
            quiz = lab_quiz(model, task, settings.items * (2 if task == "closed_book" else 1), settings.seed)
            rows.append(_measure_quiz(model, scores, settings, quiz, settings.scope, (k,), settings.item_controls))
        able = {row["task"] for row in rows if "top" in row["right"]}
        for task in (task for task in EVERYWHERE if settings.scope != "all" and task in able):
            quiz = lab_quiz(model, task, settings.items * (2 if task == "closed_book" else 1), settings.seed)
            rows.append(_measure_quiz(model, scores, settings, quiz, "all", (k,), settings.all_controls))
    except (NotMeasured, PromptError) as error:
        return {"why": str(error)}
    return {"name": model.name, "k": k, "heads": heads, "mode": settings.mode, "tasks": rows}


def measure_real(
    model: Model, scores: HeadScores, settings: RealSettings, data: Path | None, work: Path | None
) -> dict[str, Any]:
    """The same about the real world, with draws of any layer too. data: folder of LRE relations; without it nothing can be asked."""
    heads, k = len(scores.ranking()), settings.item_k
    if 2 * k > heads:
        return {"why": f"too few heads for a control: {heads}"}
    if data is None:
        return {"why": "give the LRE relations with --data: without them neither written steps nor facts can be asked for"}
    relations = read_relations(data)
    try:
        quizzes = Asker(model, relations, settings, work).quizzes()
    except (NotMeasured, PromptError) as error:
        return {"why": str(error)}
    rows = []
    for quiz in quizzes:
        ks = (k, settings.item_beside)
        rows.append(
            _measure_quiz(model, scores, settings, quiz, settings.scope, ks, settings.item_controls, ("any_layer",), work)
        )
    return {"name": model.name, "k": k, "beside": settings.item_beside, "heads": heads, "mode": settings.mode, "tasks": rows}


def _measure_quiz(
    model: Model, scores: HeadScores, settings: Settings, quiz: Quiz, scope: str, ks: tuple[int, ...], controls: int,
    more: tuple[Kind, ...] = (), work: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One task. ks: numbers of heads; draws are made for the first of them only."""
    variants = head_variants(scores, ks[:1], controls, settings.seed, more)
    variants += tuple(v for v in head_variants(scores, ks[1:], 1, settings.seed) if v.kind in ("top", "bottom"))
    sets, places = distinct_sets(variants)

    def answered(sets: Sequence[HeadSet]) -> Answers:
        stated = describe_answers(model, quiz, sets, settings.mode, scope)
        directory = open_directory(work, f"{model.name}.{quiz.task}-{scope}-{len(sets)}", stated)
        return answer_items(model, quiz, sets, settings.mode, scope, directory)

    if answered(sets[:1]).marks[..., 0].mean() < FLOOR:
        variants, sets, places = variants[:1], sets[:1], places[:1]  # a model that cannot do the task has nothing to lose
    found = answered(sets)
    marks, texts = found.marks[places], [found.text[place] for place in places]
    values = {"exact": marks[..., 0], "logprob": found.logprob[places]}
    info = tuple({"item": i} for i in range(len(quiz.items)))
    kept = [i for i, variant in enumerate(variants) if variant.k in (0, ks[0])]
    drawn = tuple(variants[i] for i in kept)
    values = {name: table[kept] for name, table in values.items()}
    result = AblationResult(drawn, info, values, np.empty((len(drawn), 0)), settings.seed, {})
    chosen = _places(variants, ks)
    return {
        "task": quiz.task,
        "scope": scope,
        "items": len(quiz.items),
        "rows": result.summary(),
        "right": {kind: marks[rows, :, 0].mean(axis=0).round(6).tolist() for kind, rows in chosen.items()},
        "numbers": list(quiz.numbers),
        "means": {kind: marks[rows].mean(axis=(0, 1)).tolist() for kind, rows in chosen.items()},
        "second": {kind: marks[rows, :, -1].mean(axis=0).round(6).tolist() for kind, rows in chosen.items()},
        "samples": [_sample(texts, chosen, quiz.items[i], i) for i in range(min(SAMPLES, len(quiz.items)))],
    }


def _places(variants: Sequence[Variant], ks: tuple[int, ...]) -> dict[str, list[int]]:
    """Rows of each kind at the first number of heads; `top 8` and the like at the others. Only `none` if nothing was removed."""
    kinds: dict[str, list[int]] = {}
    for i, variant in enumerate(variants):
        kinds.setdefault(variant.kind if variant.k in (0, ks[0]) else f"{variant.kind} {variant.k}", []).append(i)
    return kinds


def _sample(texts: Sequence[Sequence[str]], chosen: dict[str, list[int]], item: Asked, i: int) -> dict[str, str]:
    """One question with its answers; the first draw stands for random heads."""
    answers = {kind: texts[rows[0]][i] for kind, rows in chosen.items()}
    return {"context": item.context, "question": item.question, "gold": item.answer, **answers}


def difference_of_losses(a: dict[str, Any], b: dict[str, Any], seed: int) -> tuple[float, float, float]:
    """Loss on task a minus loss on task b without the top heads, and its 95 % interval; the items of each are resampled.

    Args:
        a: An entry of `tasks`, see `measure`.
        b: Another one.
        seed: Of the resampling.

    Returns:
        Difference, low and high, in shares of right answers.
    """
    rng = np.random.default_rng([seed, 61])
    losses = [np.asarray(t["right"]["none"]) - np.asarray(t["right"]["top"]) for t in (a, b)]
    means: list[NDArray[np.float64]] = [x[rng.integers(len(x), size=(DRAWS, len(x)))].mean(axis=1) for x in losses]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(losses[0].mean() - losses[1].mean()), float(low), float(high)


def judge(models: Sequence[Evidence], seed: int) -> Property:
    """Main checks per model: written steps suffer; memory hardly does. Supporting: weak and random heads, direct answers, other scope."""
    checks = [check for found in models for check in _checks(found, seed)]
    measured = [found.reasoning for found in models if found.reasoning.get("tasks")]
    able = [m for m in measured if _whole(m, "steps") >= ABLE and _whole(m, "closed_book") >= ABLE]
    line = "no model answers both kinds of question"
    if able:
        parts = []
        for task, name in (("steps", "two-hop with steps"), ("closed_book", "closed book")):
            whole, top = ([_mean(m, task, kind) for m in able] for kind in ("none", "top"))
            parts.append(f"{name} {span_of(whole)} → {span_of(top)}")
        line = "; ".join(parts) + f" with the top {' or '.join(str(k) for k in sorted({m['k'] for m in able}))} heads ablated"
    notes = [
        "Direct two-hop answers of lab models need the text as much as written steps do; the paper's answer-only tasks are answered from "
        "memory. Real models have no text here: their direct answers come from memory, their written steps from memory and what they wrote.",
        f"A loss is judged where the whole model answers at least {ABLE:g} of the questions ({FLOOR:g} for direct answers).",
    ]
    claim = "Writing out steps needs retrieval heads; answering from memory hardly does."
    return Property("reasoning", "Reasoning", claim, line, checks, {"models": measured}, notes)


def _task(measured: dict[str, Any], task: str, scope: str | None = None) -> dict[str, Any]:
    tasks: list[dict[str, Any]] = measured["tasks"]
    return next(t for t in tasks if t["task"] == task and (scope is None or t["scope"] == scope))


def _mean(measured: dict[str, Any], task: str, kind: str, scope: str | None = None) -> float:
    return float(row_of(_task(measured, task, scope)["rows"], "exact", kind, 0 if kind == "none" else measured["k"])["mean"])


def _whole(measured: dict[str, Any], task: str) -> float:
    return _mean(measured, task, "none")


def _checks(found: Evidence, seed: int) -> list[Check]:
    name, m = found.name, found.reasoning
    suffer, hardly = f"below {HALF:g} of the whole model's, p at most {LEVEL:g}", f"at most {HARDLY:g} of the loss on steps"
    if not m.get("tasks"):
        return [missing(name, "two-hop with steps", suffer, found.why or str(m.get("why", "")))]
    steps, memory = _whole(m, "steps"), _whole(m, "closed_book")
    if steps < ABLE:
        return [missing(name, "two-hop with steps", suffer, f"the whole model answers only {steps:.2f}")]
    k, top, p = m["k"], _mean(m, "steps", "top"), row_of(_task(m, "steps")["rows"], "exact", "top", m["k"])["p_paired"]
    text = f"{steps:.2f} → {top:.2f}, random {_mean(m, 'steps', 'random'):.2f} (K = {k}, {p_text(p)})"
    checks = [Check(name, "two-hop with steps", text, suffer, top < HALF * steps and p <= LEVEL)]
    if memory < ABLE:
        return [*checks, missing(name, "closed book", hardly, f"the whole model answers only {memory:.2f}")]
    checks += [_memory_check(m, seed, None, hardly), *_supporting(m, seed, hardly)]
    return checks


def _memory_check(m: dict[str, Any], seed: int, scope: str | None, rule: str) -> Check:
    """Whether facts known by heart lose at most a quarter of what written steps lose, and surely less."""
    losses = [_mean(m, task, "none", scope) - _mean(m, task, "top", scope) for task in ("steps", "closed_book")]
    _, low, high = difference_of_losses(_task(m, "steps", scope), _task(m, "closed_book", scope), seed)
    text = f"loss {losses[1]:.2f} against {losses[0]:.2f}, difference {low:.2f} to {high:.2f} (95 %)"
    what = "closed book" if scope is None else "closed book, heads ablated at every position"
    return Check(m["name"], what, text, rule, losses[1] <= HARDLY * losses[0] and low > 0, main=scope is None)


def _supporting(m: dict[str, Any], seed: int, hardly: str) -> list[Check]:
    name, row = m["name"], row_of(_task(m, "closed_book")["rows"], "exact", "top", m["k"])
    whole, bottom = _whole(m, "steps"), _mean(m, "steps", "bottom")
    top, random = _mean(m, "closed_book", "top"), _mean(m, "closed_book", "random")
    worse = top < random and row["p_paired"] <= LEVEL
    text = f"{top:.2f} against {random:.2f} ({p_text(row['p_paired'])})"
    checks = [
        Check(
            name, "two-hop with steps, weakest heads", f"{whole:.2f} → {bottom:.2f}", KEEPS, bottom >= HALF * whole, main=False
        ),
        Check(name, "closed book, top against random heads", text, "not worse", not worse, main=False),
    ]
    checks += _real_checks(m) if "beside" in m else []
    if {t["task"] for t in m["tasks"] if t["scope"] == "all"} == set(EVERYWHERE) and _task(m, "steps")["scope"] != "all":
        checks.append(_memory_check(m, seed, "all", hardly))
    direct, rule = _whole(m, "direct"), "loses a smaller share than written steps"
    if direct < FLOOR:
        return [*checks, missing(name, "two-hop, direct", rule, f"the whole model answers only {direct:.2f}", main=False)]
    kept = [_mean(m, task, "top") / _whole(m, task) for task in ("steps", "direct")]
    text = f"keeps {kept[1]:.2f} of its share, steps keep {kept[0]:.2f}"
    return [*checks, Check(name, "two-hop, direct", text, rule, kept[1] > kept[0], main=False)]


def _real_checks(m: dict[str, Any]) -> list[Check]:
    """Of real models: what random heads cost written steps, and where contradicted answers come from. All supporting."""
    name, rows, k = m["name"], _task(m, "steps")["rows"], m["k"]
    whole, top = _whole(m, "steps"), _mean(m, "steps", "top")
    checks, rule = [], f"at most {MUCH_LESS:.0%} of the top heads' loss, p at most {LEVEL:g}"
    for kind in ("random", "any_layer"):
        loss = whole - row_of(rows, "exact", kind, k)["mean"]
        p = row_of(rows, "exact", "top" if kind == "random" else kind, k)["p_paired"]
        text, less = f"loss {loss:.2f} against {whole - top:.2f} ({p_text(p)})", loss <= MUCH_LESS * (whole - top) and p <= LEVEL
        checks.append(Check(name, f"two-hop with steps, {DRAWN[kind]}", text, rule, less, main=False))
    passage = _task(m, "contradiction")
    rule = f"the passage below {HALF:g} of the whole model's share, memory above"
    if passage["means"]["none"][0] < ABLE:
        told = f"the whole model follows only {passage['means']['none'][0]:.2f} of the passages"
        return [*checks, missing(name, "passage against memory", rule, told, main=False)]
    before, after = passage["means"]["none"], passage["means"]["top"]
    text = f"passage {before[0]:.2f} → {after[0]:.2f}, memory {before[1]:.2f} → {after[1]:.2f}"
    holds = after[0] < HALF * before[0] and after[1] > before[1]
    return [*checks, Check(name, "passage against memory", text, rule, holds, main=False)]
