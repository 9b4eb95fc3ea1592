"""Quality of sparse decoding: what a chooser leaves of the full model's answers and of its running text, at a budget.

The prompt is read once with full attention; every chooser and budget goes on from a copy. Answers are said greedily; running text is given token by
token (teacher-forced), and every step is compared with the full model's step over the same tokens; or it is decoded freely, and compared with what
the full model says. The fall-back of a chooser below chance is off:
here the chooser itself is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from headwise.attention.plan import attached
from headwise.attention.sparse import Chooser
from headwise.caches.roomy import RoomyLayer, roomy_cache
from headwise.caches.sparse_cache import SparseCache, sparse_decode
from headwise.evaluation.contexts import Context
from headwise.evaluation.sparse_rows import ABOUT, FULL, Row, mean_numbers
from headwise.evaluation.sparse_watch import Watch
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import Heads
from headwise.models.forward import check_finite, forward, token_tensor
from headwise.models.model import Model
from headwise.runtime.answer import decode_rows
from headwise.runtime.rundir import RunDirectory

MIN_FULL = 0.3  # mean score that the full model must reach, or nothing can be said of choosers
SINKS, RECENT = 4, 32
TEXT = "text"
GREEDY = "greedy"
CHOICES = "choices"  # the full model's tokens, in its cells of a run directory


class Rival(NamedTuple):
    """A chooser at a budget.

    Attributes:
        name: As results call it.
        budget: Positions per KV head and step.
        make: Makes the chooser; called once per text.
    """

    name: str
    budget: int
    make: Callable[[], Chooser]


class Running(NamedTuple):
    """A running text behind a context.

    Attributes:
        length: Tokens of both together, as wanted.
        ids: Token ids of the context, at least two, and of the text.
        steps: Decoding steps; the text has one token more.
        free: The text is not given, but decoded greedily behind the context.
    """

    length: int
    ids: tuple[int, ...]
    steps: int
    free: bool = False

    @property
    def task(self) -> str:
        """`text`, or `greedy` where it is decoded freely."""
        return GREEDY if self.free else TEXT


def measure_cells(
    model: Model,
    rivals: Sequence[Rival],
    contexts: Sequence[Context | Running],
    heads: Heads | None = None,
    directory: RunDirectory | None = None,
    report: Report = silent,
    min_full: float = MIN_FULL,
) -> list[Row]:
    """Run every chooser at every budget over every context; `mean_rows` takes the means.

    Args:
        model: The model with its tokenizer.
        rivals: Choosers with budgets.
        contexts: Questions and running texts.
        heads: Retrieval heads, at which the attention mass that is kept is told apart.
        directory: Finished cells are kept there and not run again.
        report: Called with (done, total, remark) in cells.
        min_full: Mean score in [0, 1] that the full model must reach on a task; below it the task is not testable and no chooser is run.

    Returns:
        One row per task, length, `context` (its number, from 0), chooser and budget, the full model first (`chooser` "full", no budget); no rows of
        choosers where the full model does not pass the gate of a task. Of tasks: `score` and `full_score`. Of text: `loss` and `full_loss` (nats per
        token), `agreement`, `mass`, `mass_heads` (None without heads), `recall`, `recall_by_layer` (layers with full attention, None for those that
        read everything), `recall_by_chance`, `overlap`, `overlap_by_chance`. Of greedy text: `agreement_greedy` (share of the full model's tokens
        that are said before the first other one) and `equal_greedy` (share of places with the same token). Of all, per step: `bytes_read` (by all
        layers with full attention, those that read everything among them), `bytes_chosen_by` (by the chooser beside that, see `Chooser.reads`),
        `bytes_moved` (to slots) and `bytes_full`.

    Raises:
        HeadwiseError: Nothing to measure, or logits that are not finite.
    """
    if not rivals or not contexts:
        raise HeadwiseError("nothing to measure: give at least one chooser, one budget and one context")
    rivals = list({(rival.name, rival.budget): rival for rival in rivals}.values())
    rows, done, total = list[Row](), 0, len(contexts) * (1 + len(rivals))
    cells = _Cells(model, heads, directory)
    for kind in dict.fromkeys((context.task, context.length) for context in contexts):
        own = [context for context in contexts if (context.task, context.length) == kind]
        full = []
        for i, context in enumerate(own):
            full.append(cells.get(context, i, None))
            done += 1
            report(done, total, f"{kind[0]}, {kind[1]} tokens, full attention")
        rows += [_cell(context, i, FULL, None, one) for i, (context, one) in enumerate(zip(own, full, strict=True))]
        passed = isinstance(own[0], Running) or float(np.mean([one["score"] for one in full])) >= min_full
        for i, context in enumerate(own):
            for rival in rivals:
                if passed:
                    rows.append(_cell(context, i, rival.name, rival.budget, cells.get(context, i, rival, full[i])))
                done += 1
                report(done, total, f"{kind[0]}, {kind[1]} tokens, {rival.name}")
    return rows


def _cell(context: Context | Running, number: int, chooser: str, budget: int | None, found: Row) -> Row:
    about = zip(ABOUT, (context.task, context.length, number, chooser, budget), strict=True)
    return dict(about) | {name: value for name, value in found.items() if name != CHOICES}


class _Cells:
    """Cells of a run: one context under one rival, or under full attention. The prompt of the newest context is kept."""

    def __init__(self, model: Model, heads: Heads | None, directory: RunDirectory | None) -> None:
        self._model, self._heads, self._directory = model, heads, directory
        self._read: tuple[tuple[int, ...], DynamicCache] | None = None

    def get(self, context: Context | Running, number: int, rival: Rival | None, full: Row | None = None) -> Row:
        """The numbers of a cell, made if need be."""
        what = "full" if rival is None else f"{_plain(rival.name)}-{rival.budget}"
        key = f"{_plain(context.task)}-{context.length}-{number}-{what}"
        known = self._directory.load(key) if self._directory else None
        if known is not None:
            return known[1][0]
        made = self._made(context, rival, full)
        if self._directory:
            self._directory.save(key, {}, [made])
        return made

    def _made(self, context: Context | Running, rival: Rival | None, full: Row | None) -> Row:
        if not isinstance(context, Running):
            return self._answer(context, rival, full)
        return self._greedy(context, rival, full) if context.free else self._text(context, rival, full)

    def _prefix(self, ids: tuple[int, ...]) -> DynamicCache:
        """A cache that has read some tokens with full attention."""
        if self._read is None or self._read[0] != ids:
            cache = roomy_cache(self._model.hf.config)
            with attached(self._model), torch.no_grad():
                check_finite(forward(self._model.hf, token_tensor(self._model.hf, ids), cache, logits_to_keep=1).logits[:, -1])
            self._read = ids, cache
        return self._read[1]

    @contextmanager
    def _decoding(
        self, ids: tuple[int, ...], rival: Rival | None, watch: Watch
    ) -> Iterator[tuple[DynamicCache, tuple[int, ...]]]:
        """A block in which a rival (None: full attention) decodes behind ids: its cache, and the ids that it has not read yet."""
        self._prefix(ids)  # before the block is opened, so that nobody watches
        with attached(self._model) as plan, plan.running(watch):
            if rival is None:
                yield _filled(roomy_cache(self._model.hf.config), self._prefix(ids)), ()
                return
            chooser = rival.make()
            with sparse_decode(
                self._model, chooser, budget=rival.budget, sinks=SINKS, recent=RECENT, placement="slots", check=False
            ) as cache:
                yield (cache, ids) if chooser.reads_text else (_filled(cache, self._prefix(ids)), ())

    def _answer(self, context: Context, rival: Rival | None, full: Row | None) -> Row:
        """Score of the answers to all questions of a context."""
        scores, spent = [], list[Row]()
        for question in context.questions:
            watch = Watch(self._model, SINKS, RECENT, None, rows=False)
            with self._decoding(context.ids, rival, watch) as (cache, unread):
                said = decode_rows(self._model.hf, cache, (*unread, *question.rest), context.stop, question.limit, 1)[0]
                spent.append(_spent(watch, cache))
            text = str(self._model.tokenizer.decode(list(said), skip_special_tokens=True))
            scores.append(question.judge(text))
        score = float(np.mean(scores))
        return {"score": score, "full_score": score if full is None else full["score"]} | mean_numbers(spent)

    @torch.no_grad()
    def _text(self, context: Running, rival: Rival | None, full: Row | None) -> Row:
        """Every step of a running text."""
        cut = len(context.ids) - context.steps - 1
        before, text = context.ids[:cut], context.ids[cut:]
        watch = Watch(self._model, SINKS, RECENT, self._heads, rows=rival is not None)
        losses, choices = [], []
        with self._decoding(before[:-2], rival, watch) as (cache, unread):
            forward(self._model.hf, token_tensor(self._model.hf, (*unread, *before[-2:])), cache, logits_to_keep=1)
            for token, wanted in pairwise(text):
                logits = forward(self._model.hf, token_tensor(self._model.hf, [token]), cache).logits[:, -1]
                check_finite(logits)
                losses.append(float(torch.nn.functional.cross_entropy(logits.float(), _target(wanted, logits))))
                choices.append(int(logits[0].argmax()))
            spent = _spent(watch, cache)
        own = choices if full is None else full[CHOICES]
        found: Row = {
            "loss": float(np.mean(losses)),
            "agreement": float(np.mean([a == b for a, b in zip(choices, own, strict=True)])),
        }
        found["full_loss"] = found["loss"] if full is None else full["loss"]
        return found | spent | watch.shares() | ({CHOICES: choices} if rival is None else {})

    def _greedy(self, context: Running, rival: Rival | None, full: Row | None) -> Row:
        """As many steps of the model's own text, whatever it says, the end of a text included."""
        before = context.ids[: len(context.ids) - context.steps - 1]
        watch = Watch(self._model, SINKS, RECENT, None, rows=False)
        with self._decoding(before[:-2], rival, watch) as (cache, unread):
            said = decode_rows(self._model.hf, cache, (*unread, *before[-2:]), (), context.steps + 1, 1)[0]
            spent = _spent(watch, cache)
        said = said[1:]  # the first one is said by the pass over the prompt's end, which reads everything
        same = np.equal(said, said if full is None else full[CHOICES])
        agreement = {"agreement_greedy": float(same.cumprod().mean()), "equal_greedy": float(same.mean())}
        return agreement | spent | ({CHOICES: list(said)} if rival is None else {})


def _filled(cache: DynamicCache, other: DynamicCache) -> DynamicCache:
    """Give a cache what another one holds; neither writes into the other afterwards."""
    cache.layers = [copy.copy(layer) if isinstance(layer, RoomyLayer) else copy.deepcopy(layer) for layer in other.layers]
    return cache


def _spent(watch: Watch, cache: DynamicCache) -> Row:
    """Bytes per step, and overlap of adjacent choices."""
    counted = cache.report() if isinstance(cache, SparseCache) else {}
    names = {"bytes_moved": "bytes_moved_per_step", "overlap": "overlap", "overlap_by_chance": "overlap_by_chance"}
    spent = watch.bytes_per_step(counted.get("sparse_steps", 0) * (counted.get("bytes_chosen_by_per_step") or 0))
    return spent | {name: counted.get(source) for name, source in names.items()}


def _target(token: int, logits: Tensor) -> Tensor:
    return torch.tensor([token], device=logits.device)


def _plain(name: str) -> str:
    """A name as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
