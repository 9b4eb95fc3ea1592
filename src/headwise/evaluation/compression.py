"""Recall against bytes: what a compressed cache still answers, and how much it holds, beside the full cache on the same questions.

Two protocols. `inside`: the question is part of the prompt that is compressed, so a method can see what it will be asked; the first token of
the answer comes from the prefill, which a dense method runs with full attention. `outside`: the context alone is compressed, once, and each
question continues a fork of it; nothing is read from the full cache then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.plan import attached
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import Compressor
from headwise.evaluation.contexts import Context, Question, answer_spans
from headwise.evaluation.reading import Reading, Size, continuations, decoded, size_of
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.stats.paired import bootstrap_mean, sign_flip_test

PROTOCOLS = ("inside", "outside")
MIN_FULL = 0.3  # share of the questions that the full cache must answer

Row = dict[str, Any]
Values = NDArray[np.float64]


class Candidate(NamedTuple):
    """A method to be measured.

    Attributes:
        name: As results call it.
        budget: As it is to be shown: positions, or a share of the prompt; None for a method without.
        make: A compressor, or what makes one for a prompt with spans `answer/1`, ... (the oracle).
        told: It is told where the answer stands, so it is left out where that is not known.
    """

    name: str
    budget: int | float | None
    make: Compressor | Callable[[Prompt], Compressor]
    told: bool = False

    def for_prompt(self, prompt: Prompt) -> Compressor:
        """The compressor to use for a prompt."""
        return self.make if hasattr(self.make, "kept") else self.make(prompt)  # type: ignore[return-value]


class Said(NamedTuple):
    """One answer.

    Attributes:
        text: What was said, special tokens left out.
        right: How right it is, in [0, 1], by the question's judge.
    """

    text: str
    right: float


class Outcome(NamedTuple):
    """One context under one method.

    Attributes:
        survival: [compressed layer, KV head] share of the answer's tokens that is held, mean over questions; NaN: unknown.
        size: Right after the prefill, mean over questions.
        said: One answer per question.
    """

    survival: Values
    size: Size
    said: tuple[Said, ...]

    @property
    def right(self) -> float:
        """Mean over the questions, in [0, 1]."""
        return float(np.mean([said.right for said in self.said]))


class Measurement(NamedTuple):
    """What a comparison of caches gave, as plain data.

    Attributes:
        rows: One per task, length, place of the question and method: `task`, `length`, `question` (the place), `method`, `budget`, `gate`,
            `n` contexts and `asked` questions, `exact` with its 95 % interval [`low`, `high`] over contexts, `difference` to the first method
            with its interval and `p` (sign flips), `survival` (mean, and `survival_heads` per layer and KV head), `positions` held per KV
            head, `bytes` held, `bytes_formula`, `bytes_full`, `tokens` of the prompt, `seed` of the intervals.
        answers: One per question that was asked: `task`, `length`, `question`, `context` (its number), `id`, `gold`, and `said`: the text
            of each method and how `right` it is, in [0, 1].
        gates: One per task, length and place of the question: whether the first method, the full cache, answers enough for a comparison.
        left_out: Which methods were left out where, and why; one line each.
    """

    rows: list[Row]
    answers: list[Row]
    gates: list[Row]
    left_out: list[str]


def measure_compression(
    model: Model,
    candidates: Sequence[Candidate],
    contexts: Sequence[Context],
    protocols: Sequence[str] = PROTOCOLS,
    seed: int = 0,
    report: Report = silent,
    min_full: float = MIN_FULL,
) -> Measurement:
    """Ask every question under every method, and compare each with the first one, item by item.

    Args:
        model: The model with its tokenizer.
        candidates: Methods; the first is the full cache.
        contexts: Texts with their questions.
        protocols: Where questions stand: `inside` of what is compressed, `outside`, or both.
        seed: Of the intervals, 0 or more.
        report: Called with (done, total, remark); done and total count tokens of prompts.
        min_full: Share of the questions, in [0, 1], that the first method must answer; below it nothing can be said of the others.

    Returns:
        Rows, answers, gates and what was left out. Rows are there also where the gate failed, and say so.

    Raises:
        HeadwiseError: Nothing to measure, an unknown place of the question, or numbers out of range.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise HeadwiseError(f"unknown place of the question {unknown[0]!r}; use {' or '.join(PROTOCOLS)}")
    if not candidates or not contexts:
        raise HeadwiseError("nothing to measure: give at least one method and one context")
    if seed < 0 or not 0 <= min_full <= 1:
        raise HeadwiseError(f"the seed must be 0 or more and min_full in [0, 1]; got {seed} and {min_full:g}")
    total, done = len(protocols) * sum(map(_tokens, contexts)), 0.0
    found = Measurement([], [], [], [])
    for kind in dict.fromkeys((context.task, context.length) for context in contexts):
        own = [context for context in contexts if (context.task, context.length) == kind]
        usable = _usable(candidates, own, found)
        for protocol in protocols:
            outcomes: list[list[Outcome]] = []  # [context][candidate]
            for context in own:
                with attached(model.hf):
                    outcomes.append((_inside if protocol == "inside" else _outside)(model, usable, context))
                done += _tokens(context)
                report(done, total, f"{kind[0]}, question {protocol}")
            about: Row = {"task": kind[0], "length": kind[1], "question": protocol}
            _add(found, about, usable, own, outcomes, seed, min_full)
    return found


def _usable(candidates: Sequence[Candidate], contexts: Sequence[Context], found: Measurement) -> list[Candidate]:
    """Without those that must be told where answers stand, if that is not known of all."""
    unknown = sum(question.answer is None for context in contexts for question in context.questions)
    for candidate in candidates:
        line = f"{candidate.name} is left out of {contexts[0].task}: it needs the place of every answer, and {unknown} have none that is known"
        if unknown and candidate.told and line not in found.left_out:
            found.left_out.append(line)
    return [candidate for candidate in candidates if not (unknown and candidate.told)]


def _add(
    found: Measurement, about: Row, candidates: Sequence[Candidate], contexts: Sequence[Context], outcomes: list[list[Outcome]],
    seed: int, min_full: float,
) -> None:  # fmt: skip
    """Rows, answers and gate of one task, length and place of the question."""
    right = np.array([[outcome.right for outcome in each] for each in outcomes])
    gate = _gate(candidates[0].name, [outcome for each in outcomes for outcome in each[:1]], right[:, 0], seed, min_full)
    found.gates.append(about | gate)
    for i, candidate in enumerate(candidates):
        named: Row = {"method": candidate.name, "budget": candidate.budget}
        measured = _row(contexts, [each[i] for each in outcomes], right[:, i], right[:, 0] if i else None, seed)
        found.rows.append(about | named | {"gate": gate["gate"]} | measured)
    for number, (context, each) in enumerate(zip(contexts, outcomes, strict=True)):
        for place, question in enumerate(context.questions):
            said = [
                {"method": candidate.name, "budget": candidate.budget, **outcome.said[place]._asdict()}
                for candidate, outcome in zip(candidates, each, strict=True)
            ]
            name = question.id or str(place + 1)
            found.answers.append(about | {"context": number, "id": name, "gold": question.gold, "said": said})


def _gate(name: str, outcomes: Sequence[Outcome], right: Values, seed: int, min_full: float) -> Row:
    """Whether the first method answers enough; what it says otherwise."""
    mean, low, high = bootstrap_mean(right, seed=seed)
    said = [said for outcome in outcomes for said in outcome.said]
    count = f"{sum(one.right for one in said):g} of {len(said)}"
    passed = mean >= min_full
    who = "the full cache" if name == "full" else name
    note = None if passed else f"not measurable: {who} answers {count}, and {min_full:.0%} are needed for a comparison"
    measured = {"answered": count, "exact": mean, "low": low, "high": high, "min_full": min_full, "note": note}
    return {"gate": "passed" if passed else "failed"} | measured


def _tokens(context: Context) -> int:
    return len(context.ids) + sum(len(question.rest) for question in context.questions)


@torch.no_grad()
def _inside(model: Model, candidates: Sequence[Candidate], context: Context) -> list[Outcome]:
    """Every question is read with the context. One outcome per candidate."""
    found: list[list[Outcome]] = [[] for _ in candidates]
    for question in context.questions:
        prompt = Prompt(context.ids + question.rest, answer_spans([question]))
        reading = Reading(model, prompt.ids)
        for batch in reading.batches(_ordered(candidates, prompt)):
            said = continuations(model.hf, [one.cache for one in batch], batch[0].logits, context.stop, question.limit)
            for one, ids in zip(batch, said, strict=True):
                text = _text(model, ids)
                found[one.number].append(Outcome(*_held(one.cache, [question]), (Said(text, question.judge(text)),)))
    return [_mean_outcome(outcomes) for outcomes in found]


@torch.no_grad()
def _outside(model: Model, candidates: Sequence[Candidate], context: Context) -> list[Outcome]:
    """The context is read once; every question continues a copy of it. One outcome per candidate."""
    prompt, found = Prompt(context.ids, answer_spans(context.questions)), dict[int, Outcome]()
    for batch in Reading(model, prompt.ids).batches(_ordered(candidates, prompt)):
        caches = [one.cache for one in batch]
        answers: list[list[Said]] = [[] for _ in batch]
        for question in context.questions:
            for own, ids in zip(answers, decoded(model.hf, caches, question.rest, context.stop, question.limit), strict=True):
                text = _text(model, ids)
                own.append(Said(text, question.judge(text)))
        for one, own in zip(batch, answers, strict=True):
            found[one.number] = Outcome(*_held(one.cache, context.questions), tuple(own))
    return [found[number] for number in range(len(candidates))]


def _ordered(candidates: Sequence[Candidate], prompt: Prompt) -> list[tuple[int, Compressor]]:
    """(place among the candidates, compressor), small caches first: those of one batch are then of about one size."""

    def share(number: int) -> float:
        budget = candidates[number].budget
        return 1.0 if budget is None else budget / len(prompt.ids) if isinstance(budget, int) else budget

    return [(number, candidates[number].for_prompt(prompt)) for number in sorted(range(len(candidates)), key=share)]


def _text(model: Model, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def _held(cache: KeptCache, questions: Sequence[Question]) -> tuple[Values, Size]:
    """What a cache holds right after the prefill: survival of the answers, and its size."""
    held = list(cache.held_positions().values())
    return _mean([survival_of(held, question.places) for question in questions]), size_of(cache)


def _mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Questions that were read one by one, as one context."""
    size = Size(*(_mean(values) for values in zip(*(outcome.size for outcome in outcomes), strict=True)))
    return Outcome(_mean([outcome.survival for outcome in outcomes]), size, tuple(said for one in outcomes for said in one.said))


def survival_of(held: Sequence[Sequence[Tensor]], places: Sequence[Span]) -> Values:
    """[layer, KV head] share of an answer's positions that is held; NaN if its places are not known."""
    if not places:
        return np.full((len(held), len(held[0])), np.nan)
    inside = [
        [sum(((head >= span.start) & (head < span.stop)).sum().item() for span in places) for head in heads] for heads in held
    ]
    return np.array(inside, dtype=np.float64) / sum(span.length for span in places)


def _mean(values: Sequence[Any]) -> Any:
    return np.mean(np.array(values, dtype=np.float64), axis=0)


def _row(contexts: Sequence[Context], outcomes: Sequence[Outcome], right: Values, first: Values | None, seed: int) -> Row:
    exact = bootstrap_mean(right, seed=seed)
    row: Row = {"n": len(contexts), "asked": sum(len(context.questions) for context in contexts)}
    row |= {"exact": exact.mean, "low": exact.low, "high": exact.high}
    difference = None if first is None else bootstrap_mean(right - first, seed=seed)
    for name in ("mean", "low", "high"):
        row["difference" if name == "mean" else f"difference_{name}"] = None if difference is None else getattr(difference, name)
    row["p"] = None if first is None else sign_flip_test(right - first, seed=seed)
    survival = _mean([outcome.survival for outcome in outcomes])
    known = bool(np.isfinite(survival).all())
    row |= {"survival": float(survival.mean()) if known else None, "survival_heads": survival.tolist() if known else None}
    for name, field in (("positions", "positions"), ("bytes", "nbytes"), ("bytes_formula", "formula"), ("bytes_full", "full")):
        row[name] = float(np.mean([getattr(outcome.size, field) for outcome in outcomes]))
    tokens = [len(context.ids) + len(question.rest) for context in contexts for question in context.questions]
    return row | {"tokens": float(np.mean(tokens)), "seed": seed}
