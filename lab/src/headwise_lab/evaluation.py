"""How well a model does what the lab models are made for: every task of the micro-world, and plain book text."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from headwise.evaluation.perplexity import window_losses
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.prompt import Piece
from headwise.prompts.words import check_split
from headwise.runtime.answer import stop_ids
from headwise.runtime.batches import greedy_answers, next_token_logits
from headwise.stats.paired import bootstrap_mean
from headwise_lab.eval_tasks import BASE, GOALS, Drawer, Item, NotMeasured, Spec, right, specs_for
from headwise_lab.microworld.registry import TASKS
from headwise_lab.microworld.texts import Example, with_turn

WRONG = 5  # wrong answers kept per task
WINDOWS = 24  # of book text, at most
RISE = 0.1  # of P(No) that counts as an effect of the cue; training flips 0.3 of the right answers there
REASK = ("reask_right", "reask_right_cued", "reask_wrong", "reask_only_where_cued")
BOOKS = ("perplexity", "bits_per_character")

Row = dict[str, Any]
Values = NDArray[np.float64]


def check_options(items: int, split: str, seed: int) -> None:
    """Refuse options that no evaluation can run with.

    Args:
        items: At least 1.
        split: train, selection or test.
        seed: 0 or more.

    Raises:
        HeadwiseError: One of them is something else.
    """
    if items < 1:
        raise HeadwiseError(f"the number of items must be at least 1; got {items}")
    if seed < 0:
        raise HeadwiseError(f"the seed must be 0 or more; got {seed}")
    check_split(split)


def evaluate_model(model: Model, items: int = 100, split: str = "test", seed: int = 0, report: Report = silent) -> dict[str, Any]:
    """Measure one model on every task.

    Args:
        model: With its tokenizer.
        items: Prompts per task, at least 1.
        split: train, selection or test.
        seed: 0 or more; the same seed gives the same result.
        report: `report(done, total, remark)`; progress in tasks.

    Returns:
        The model's description, the options and `rows`: per number its task, n, value (a share in [0, 1], or the `unit` it
        names), 95 % interval [low, high] and how it was made, goal (None: none) and whether value >= goal, task options, mean
        prompt length in tokens, up to `WRONG` wrong answers; or the `reason` why it was not measured.

    Raises:
        HeadwiseError: Options out of range.
    """
    check_options(items, split, seed)
    drawer = Drawer(model, items, split, seed)
    jobs: list[tuple[tuple[str, ...], Callable[[], list[Row]]]] = [
        *((spec.rows, partial(_answered, drawer, spec)) for spec in specs_for(model.positions)),
        (REASK, partial(_reasked, drawer)),
        (BOOKS, partial(_books, model, min(items, WINDOWS), seed)),
    ]
    rows: list[Row] = []
    for done, (names, run) in enumerate(jobs):
        report(done, len(jobs), names[0])
        try:
            rows += run()
        except NotMeasured as error:
            nothing = {"n": 0, "value": None, "low": None, "high": None, "met": None, "reason": str(error)}
            rows += [{"task": name, **nothing, "goal": GOALS.get(name)} for name in names]
    report(len(jobs), len(jobs), "")
    return describe_model(model) | {"items": items, "split": split, "seed": seed, "rows": rows}


def _answered(drawer: Drawer, spec: Spec) -> list[Row]:
    """Rows of a task that is answered in words."""
    options = drawer.options(spec)
    items = drawer.draw(spec, options)
    said = say(drawer.model, items, spec.spare)
    judged = np.array([spec.judge(item.example, text) for item, text in zip(items, said, strict=True)])
    wrong = [(item, item.example.turns[-1].answer_text, said[i]) for i, item in enumerate(items) if judged[i, 0] < 1]
    rows = _rows(spec, options, items, list(judged.T))
    rows[0]["wrong"] = _listed(wrong)
    return rows


def say(model: Model, items: Sequence[Item], spare: int) -> list[str]:
    """The model's greedy answers as text.

    Args:
        model: With its tokenizer.
        items: What is asked.
        spare: Tokens that an answer may have beyond the gold answer.
    """
    prompts = [item.prompt.ids for item in items]
    limits = [len(item.prompt.gold) + spare for item in items]
    answers = greedy_answers(model.hf, prompts, limits, stop_ids(model))
    return [str(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]


def _reasked(drawer: Drawer) -> list[Row]:
    """P(No) of right answers without and with the cue (the same texts) and of wrong ones; then where only the cue makes the model doubt."""
    asked = [" No", " Yes"]
    tokens = [drawer.encode(text)[0] for text in asked]
    if tokens[0] == tokens[1]:
        raise NotMeasured("the tokenizer begins Yes and No with the same token")
    spec = Spec(REASK, "reask", right, share=2)  # three prompts per item, and probabilities vary little; never judged in words
    options = {"right": True, "cue": True, "flip": 0.0}
    cued = drawer.draw(spec, options)
    plain = [Item(example, drawer.prompt(example)) for example in (uncued(item.example) for item in cued)]
    false = drawer.draw(spec, {"right": False})
    logits = next_token_logits(drawer.model.hf, [item.prompt.ids for item in (*plain, *cued, *false)], tokens)
    p_no = logits.double().softmax(dim=1)[:, 0].numpy()
    count = len(cued)
    before, after, of_false = p_no[:count], p_no[count : 2 * count], p_no[2 * count :]
    only = (before < 0.5) & (after - before >= RISE)
    wrong = [(plain[i], "Yes", f"P(No) = {before[i]:.2f}, with the cue {after[i]:.2f}") for i in np.flatnonzero(~only)]
    rows = _rows(spec, options, cued, [before, after, of_false, only.astype(np.float64)])
    rows[0] |= {"options": rows[0]["options"] | {"cue": False}, "tokens": _mean_length(plain), "wrong": []}
    rows[2] |= {"options": _with_defaults("reask", {"right": False}), "tokens": _mean_length(false)}
    rows[3]["wrong"] = _listed(wrong)
    return rows


def uncued(example: Example) -> Example:
    """The same re-asking example without the cue in front of its question."""
    first, *rest = (piece for piece in example.turns[-1].ask if "cue" not in piece.names)
    opening = Piece(first.text[:1] + first.text[1:2].upper() + first.text[2:], first.names)
    return with_turn(example, -1, ask=(opening, *rest))


def _books(model: Model, count: int, seed: int) -> list[Row]:
    """Perplexity per token and bits per character of windows from the three bundled books, which no lab model has seen in training."""
    encoder, texts = PieceEncoder(model.tokenizer), bundled_texts()
    length = min(BASE, model.positions or BASE) - len(encoder.bos)
    rng = np.random.default_rng([seed, 4])
    windows = []
    for i in range(count):
        text = texts[i % len(texts)]
        start = int(rng.integers(len(text) - 12 * length)) if len(text) > 12 * length else 0
        windows.append(encoder.encode(text[start : start + 12 * length])[:length])
    if length < 2 or any(len(window) < length for window in windows):
        raise NotMeasured(f"no windows of {length} tokens of book text")
    rows = torch.tensor([[*encoder.bos, *window] for window in windows])
    losses = window_losses(model.hf, rows).double().cpu().numpy()  # mean nats per token
    predicted = rows[:, 1:]
    characters = np.array([len(encoder.decode(ids)) for ids in predicted.tolist()])
    nats, bits = bootstrap_mean(losses), bootstrap_mean(losses * predicted.shape[1] / math.log(2) / characters)
    shared = {"interval": "bootstrap", "goal": None, "met": None, "options": {"windows": count}, "tokens": length}
    return [
        {"task": BOOKS[0], "unit": "perplexity", "n": count, **_interval(*(math.exp(x) for x in nats)), **shared},
        {"task": BOOKS[1], "unit": "bits", "n": count, **_interval(*bits), **shared},
    ]


def _rows(spec: Spec, options: Mapping[str, Any], items: Sequence[Item], judged: Sequence[Values]) -> list[Row]:
    """One row per row of `judged` [row, item], without wrong answers."""
    rows = []
    for name, values in zip(spec.rows, judged, strict=True):
        goal, found = GOALS.get(name), share_interval(values)
        row = {"task": name, "unit": "share", "n": len(values), **found, "goal": goal}
        row |= {"met": None if goal is None else found["value"] >= goal, "options": _with_defaults(spec.task, options)}
        rows.append(row | {"tokens": _mean_length(items), "wrong": []})
    return rows


def _listed(wrong: Sequence[tuple[Item, str, str]]) -> list[dict[str, str]]:
    """The first wrong answers, given as (item, expected, said)."""
    return [
        {"question": "".join(piece.text for piece in item.example.turns[-1].ask).strip(), "expected": expected, "said": said}
        for item, expected, said in wrong[:WRONG]
    ]


def _with_defaults(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options that a task ran with, so that a result tells its sizes; None means that the task draws the option."""
    known = inspect.signature(TASKS[task]).parameters.values()
    return {p.name: p.default for p in known if p.default is not p.empty and p.name not in ("world", "filler")} | dict(options)


def share_interval(values: Values) -> dict[str, Any]:
    """Mean of values [item] in [0, 1] with its 95 % interval: Wilson's if all are 0 or 1, else bootstrap.

    A bootstrap of nothing but right answers would have width 0.
    """
    if np.isin(values, (0.0, 1.0)).all():
        found = binomtest(int(values.sum()), len(values)).proportion_ci(0.95, method="wilson")
        return {**_interval(float(values.mean()), float(found.low), float(found.high)), "interval": "wilson"}
    return {**_interval(*bootstrap_mean(values)), "interval": "bootstrap"}


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def _mean_length(items: Sequence[Item]) -> float:
    """Mean prompt length in tokens."""
    return round(float(np.mean([len(item.prompt.ids) for item in items])), 1)
