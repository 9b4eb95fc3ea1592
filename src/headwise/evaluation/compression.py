"""Recall against bytes: what a compressed cache still answers, and how much it holds, beside the full cache on the same questions.

Two protocols. `inside`: the question is part of the prompt that is compressed, so a method can see what it will be asked; the first token of
the answer comes from the prefill, which a dense method runs with full attention. `outside`: the context alone is compressed, once, and each
question continues a fork of it; nothing is read from the full cache then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.plan import attached
from headwise.caches.kept_cache import KeptCache
from headwise.caches.kept_layer import Compressor, Keep, View
from headwise.evaluation.contexts import Context, Question
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.maths.memory import cache_bytes, full_counts
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.answer import check_finite, decode_rows
from headwise.stats.paired import bootstrap_mean, sign_flip_test

PROTOCOLS = ("inside", "outside")
MIN_FULL = 0.3  # share of the questions that the full cache must answer
CHUNK = 64  # tokens that are read at a time by methods whose prefill is `chunked`

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


class Size(NamedTuple):
    """Of a cache with one row.

    Attributes:
        positions: Held, mean per KV head.
        nbytes: Held, spare room included.
        formula: Bytes by the formula.
        full: Bytes of the full cache by the formula.
    """

    positions: float
    nbytes: int
    formula: int
    full: int


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


class _Recorder:
    """Keeps everything, and what each layer looked like at the end of the prefill."""

    prefill = "dense"

    def __init__(self) -> None:
        self.views: dict[int, View] = {}

    def check(self, model: Model) -> None:
        """Fits all models."""

    def streams(self, layer: int, model: Model) -> None:
        """No windows."""

    def kept(self, view: View) -> Sequence[Keep]:
        """All positions."""
        self.views[view.layer] = view
        return [Keep()]


class _Reading:
    """A prompt that was read once with full attention and can be compressed by many methods: what they see is the same."""

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self._model, self._ids, recorder = model.hf, token_tensor(model.hf, ids), _Recorder()
        self._full, self._views = KeptCache(model.hf, recorder), recorder.views
        self._logits = self._full.prefill(self._ids)

    def compressed(self, compressor: Compressor) -> tuple[KeptCache, Tensor]:
        """The cache as the method's own prefill would leave it, and the logits [1, vocabulary] behind the prompt."""
        cache = KeptCache(self._model, compressor)
        if compressor.prefill != "dense":
            return cache, cache.prefill(self._ids, chunk=CHUNK if compressor.prefill == "chunked" else None)
        others = self._full.fork().layers
        for i, view in self._views.items():
            cache.layers[i].update(view.keys, view.values)
            cache.kept_layers[i].keep(compressor, view)
        for i in cache.skipped:
            cache.layers[i] = others[i]
        return cache, self._logits


@torch.no_grad()
def _inside(model: Model, candidates: Sequence[Candidate], context: Context) -> list[Outcome]:
    """Every question is read with the context. One outcome per candidate."""
    found: list[list[Outcome]] = [[] for _ in candidates]
    for question in context.questions:
        prompt = Prompt(context.ids + question.rest, _spans([question]))
        reading = _Reading(model, prompt.ids)
        for candidate, outcomes in zip(candidates, found, strict=True):
            cache, logits = reading.compressed(candidate.for_prompt(prompt))
            survival, size = _held(cache, [question])
            said = _text(model, continuation(model.hf, cache, logits, context.stop, question.limit))
            outcomes.append(Outcome(survival, size, (Said(said, question.judge(said)),)))
    return [_mean_outcome(outcomes) for outcomes in found]


@torch.no_grad()
def _outside(model: Model, candidates: Sequence[Candidate], context: Context) -> list[Outcome]:
    """The context is read once; every question continues a fork of it. One outcome per candidate."""
    prompt = Prompt(context.ids, _spans(context.questions))
    reading, found = _Reading(model, prompt.ids), []
    for candidate in candidates:
        cache, _ = reading.compressed(candidate.for_prompt(prompt))
        survival, size = _held(cache, context.questions)
        answers = []
        for question in context.questions:
            said = _text(model, decode_rows(model.hf, cache.fork(), question.rest, context.stop, question.limit, rows=1)[0])
            answers.append(Said(said, question.judge(said)))
        found.append(Outcome(survival, size, tuple(answers)))
    return found


def _spans(questions: Sequence[Question]) -> dict[str, Span]:
    return {f"answer/{i}": question.answer for i, question in enumerate(questions, 1) if question.answer is not None}


def _text(model: Model, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def size_of(cache: KeptCache) -> Size:
    """Sizes of the layers that are compressed; `cache.skipped` are not counted.

    Args:
        cache: Of one row, after its prefill.

    Returns:
        Measured bytes, and beside them what the formula says of the same and of a full cache.
    """
    layers = list(cache.kept_layers.values())
    counts = [[len(head) for head in heads] for heads in cache.held_positions().values()]
    some = (layers[0].groups or [])[0]
    widths = {"key_width": some.keys.shape[3], "value_width": some.values.shape[3], "item_size": some.keys.element_size()}
    whole = full_counts(cache.get_seq_length(), len(layers), cache.model.heads.kv_heads)
    nbytes = sum(layer.nbytes for layer in layers)
    return Size(float(np.mean(counts)), nbytes, cache_bytes(counts, **widths), cache_bytes(whole, **widths))


def continuation(model: Any, cache: KeptCache, logits: Tensor, stop: Collection[int], limit: int) -> tuple[int, ...]:
    """Greedy answer behind a prompt that a cache has just read.

    Args:
        model: A transformers model.
        cache: Of one row; it grows.
        logits: [1, vocabulary] behind the prompt, which give the first token.
        stop: Tokens that end an answer.
        limit: Longest answer in tokens; one token is said in any case.

    Returns:
        The tokens, a stop token included.

    Raises:
        HeadwiseError: A logit behind the prompt is NaN or infinite.
    """
    check_finite(logits)
    token = int(logits[0].argmax())
    if token in stop or limit <= 1:
        return (token,)
    return (token, *decode_rows(model, cache, [token], stop, limit - 1, rows=1)[0])


def _held(cache: KeptCache, questions: Sequence[Question]) -> tuple[Values, Size]:
    """What a cache holds right after the prefill: survival of the answers, and its size."""
    held = list(cache.held_positions().values())
    return _mean([_survival(held, question.answer) for question in questions]), size_of(cache)


def _mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Questions that were read one by one, as one context."""
    size = Size(*(_mean(values) for values in zip(*(outcome.size for outcome in outcomes), strict=True)))
    return Outcome(_mean([outcome.survival for outcome in outcomes]), size, tuple(said for one in outcomes for said in one.said))


def _survival(held: Sequence[Sequence[Tensor]], answer: Span | None) -> Values:
    """[layer, KV head] share of the answer's positions that is held."""
    if answer is None:
        return np.full((len(held), len(held[0])), np.nan)
    inside = [[((head >= answer.start) & (head < answer.stop)).sum().item() for head in heads] for heads in held]
    return np.array(inside, dtype=np.float64) / answer.length


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
