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
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.maths.memory import cache_bytes, full_counts
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Span
from headwise.prompts.ruler import RulerRow, string_match
from headwise.runtime.answer import decode_rows
from headwise.runtime.runner import token_tensor
from headwise.stats.paired import bootstrap_mean, sign_flip_test

PROTOCOLS = ("inside", "outside")
CHUNK = 64  # tokens that are read at a time by methods whose prefill is `chunked`

Row = dict[str, Any]
Values = NDArray[np.float64]


class Question(NamedTuple):
    """What comes behind a context. rest: ids; judge: text of the answer -> [0, 1]; answer: its place in the context, if known."""

    rest: tuple[int, ...]
    limit: int
    judge: Callable[[str], float]
    answer: Span | None


class Context(NamedTuple):
    """A text and the questions about it. length: of prompt and answer in tokens, as wanted (None: as it comes). stop: ids that end an answer."""

    task: str
    length: int | None
    ids: tuple[int, ...]
    questions: tuple[Question, ...]
    stop: frozenset[int]


class Candidate(NamedTuple):
    """A method to be measured. make: a compressor, or what makes one for a prompt with spans `answer/1`, ... (the oracle).

    budget: as it is to be shown: positions, or a share of the prompt; None for a method without.
    """

    name: str
    budget: int | float | None
    make: Compressor | Callable[[Prompt], Compressor]

    def for_prompt(self, prompt: Prompt) -> Compressor:
        """The compressor to use for a prompt."""
        return self.make if hasattr(self.make, "kept") else self.make(prompt)  # type: ignore[return-value]


class Size(NamedTuple):
    """Of a cache with one row. positions: mean per KV head. nbytes: held, spare room included; by the formula; of the full cache (formula)."""

    positions: float
    nbytes: int
    formula: int
    full: int


class Outcome(NamedTuple):
    """One context under one method: means over its questions, sizes as right after the prefill (see `Size`).

    survival [compressed layer, KV head]: share of the answer's tokens that is held (NaN: unknown).
    """

    right: float
    survival: Values
    positions: float
    nbytes: int
    formula: int
    full: int


def measure_compression(
    model: Model,
    candidates: Sequence[Candidate],
    contexts: Sequence[Context],
    protocols: Sequence[str] = PROTOCOLS,
    seed: int = 0,
    report: Report = silent,
) -> list[Row]:
    """One row per task, length, protocol and candidate; the first candidate is what the others are compared with, item by item.

    A row: task, length, question (the protocol), method, budget, n contexts and `asked` questions, exact with its 95 % interval [low, high] over
    contexts, difference to the first candidate with its interval and p (sign flips), survival (mean, and per layer and KV head), positions
    held per KV head, bytes held, bytes by the formula, bytes of the full cache, tokens of the prompt, seed of the intervals.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise HeadwiseError(f"unknown place of the question {unknown[0]!r}; use {' or '.join(PROTOCOLS)}")
    if not candidates or not contexts:
        raise HeadwiseError("nothing to measure: give at least one method and one context")
    total, done = len(protocols) * len(contexts), 0
    rows: list[Row] = []
    for kind in dict.fromkeys((context.task, context.length) for context in contexts):
        own = [context for context in contexts if (context.task, context.length) == kind]
        for protocol in protocols:
            outcomes: list[list[Outcome]] = []  # [context][candidate]
            for context in own:
                with attached(model.hf):
                    outcomes.append((_inside if protocol == "inside" else _outside)(model, candidates, context))
                done += 1
                report(done, total, f"{kind[0]}, question {protocol}")
            right = np.array([[outcome.right for outcome in found] for found in outcomes])
            for i, candidate in enumerate(candidates):
                about: Row = {"task": kind[0], "length": kind[1], "question": protocol}
                about |= {"method": candidate.name, "budget": candidate.budget}
                rows.append(about | _row(own, [found[i] for found in outcomes], right[:, i], right[:, 0] if i else None, seed))
    return rows


def ruler_contexts(model: Model, rows: Sequence[RulerRow], chat: bool = False) -> list[Context]:
    """Contexts of RULER's rows, one question each. chat: context and question stand in a user turn, as in kvpress's evaluation.

    Raises `HeadwiseError` for a row that the model has no positions for.
    """
    encoder = PieceEncoder(model.tokenizer)
    builder = PromptBuilder(encoder, chat)
    found = []
    for row in rows:
        rest = (*builder.closing([Piece(row.question)]).ids, *encoder.encode(row.answer_prefix))
        question = Question(rest, row.limit, lambda said, row=row: string_match(said, row), None)  # type: ignore[misc]  # bound now
        context = Context(row.task, None, builder.opening([Piece(row.context)]).ids, (question,), model.stop_ids)
        most = model.positions
        if most is not None and longest(context) > most:
            raise HeadwiseError(
                f"a prompt of {row.task} needs {longest(context)} tokens, but {model.name} has {most} positions"
            )
        found.append(context)
    return found


def longest(context: Context) -> int:
    """Tokens of the longest prompt with its longest answer."""
    return len(context.ids) + max(len(question.rest) + question.limit for question in context.questions)


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
            held = _held(cache, [question])
            said = continuation(model.hf, cache, logits, context.stop, question.limit)
            outcomes.append(held._replace(right=question.judge(_text(model, said))))
    return [Outcome(*map(_mean, zip(*outcomes, strict=True))) for outcomes in found]


@torch.no_grad()
def _outside(model: Model, candidates: Sequence[Candidate], context: Context) -> list[Outcome]:
    """The context is read once; every question continues a fork of it. One outcome per candidate."""
    prompt = Prompt(context.ids, _spans(context.questions))
    reading, found = _Reading(model, prompt.ids), []
    for candidate in candidates:
        cache, _ = reading.compressed(candidate.for_prompt(prompt))
        held = _held(cache, context.questions)
        right = []
        for question in context.questions:
            said = decode_rows(model.hf, cache.fork(), question.rest, context.stop, question.limit, rows=1)[0]
            right.append(question.judge(_text(model, said)))
        found.append(held._replace(right=float(np.mean(right))))
    return found


def _spans(questions: Sequence[Question]) -> dict[str, Span]:
    return {f"answer/{i}": question.answer for i, question in enumerate(questions, 1) if question.answer is not None}


def _text(model: Model, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def size_of(cache: KeptCache) -> Size:
    """Sizes of the layers that are compressed; `cache.skipped` are not counted. The prefill must have ended."""
    layers = list(cache.kept_layers.values())
    counts = [[len(head) for head in heads] for heads in cache.held_positions().values()]
    some = (layers[0].groups or [])[0]
    widths = {"key_width": some.keys.shape[3], "value_width": some.values.shape[3], "item_size": some.keys.element_size()}
    whole = full_counts(cache.get_seq_length(), len(layers), cache.model.heads.kv_heads)
    nbytes = sum(layer.nbytes for layer in layers)
    return Size(float(np.mean(counts)), nbytes, cache_bytes(counts, **widths), cache_bytes(whole, **widths))


def continuation(model: Any, cache: KeptCache, logits: Tensor, stop: Collection[int], limit: int) -> tuple[int, ...]:
    """Greedy answer behind a prompt whose prefill gave `logits` [1, vocabulary]; ends with a stop token or after `limit` tokens."""
    token = int(logits[0].argmax())
    if token in stop or limit <= 1:
        return (token,)
    return (token, *decode_rows(model, cache, [token], stop, limit - 1, rows=1)[0])


def _held(cache: KeptCache, questions: Sequence[Question]) -> Outcome:
    """What a cache holds right after the prefill; `right` is still to be found out."""
    held = list(cache.held_positions().values())
    return Outcome(0.0, _mean([_survival(held, question.answer) for question in questions]), *size_of(cache))


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
        row[name] = float(np.mean([getattr(outcome, field) for outcome in outcomes]))
    tokens = [len(context.ids) + len(question.rest) for context in contexts for question in context.questions]
    return row | {"tokens": float(np.mean(tokens)), "seed": seed}
