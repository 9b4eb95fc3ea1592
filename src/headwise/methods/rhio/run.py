"""Unfaithful answers: those of the model without its retrieval heads, or, as a control, those of other records (card, section 3.1)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwise.attention.ablate import ablate
from headwise.attention.plan import attached
from headwise.caches.shared import fork, full_cache
from headwise.evaluation.grounded import askable
from headwise.evaluation.support import SupportChecker, check_answer
from headwise.heads.errors import HeadwiseError, PromptError
from headwise.heads.progress import Report, silent
from headwise.maths.contrast import sampled
from headwise.methods.rhio.filters import Pair, Said
from headwise.methods.rhio.options import UnfaithfulOptions
from headwise.models.model import Model, describe_model
from headwise.prompts.answers import answer_ids
from headwise.prompts.encoder import Stops, ends, read_answer
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.prompt import Prompt
from headwise.prompts.swaps import substitutes
from headwise.runtime.answer import stop_ids, verify_draft
from headwise.runtime.batches import drawn_answers, greedy_answers
from headwise.runtime.branches import Without
from headwise.runtime.rundir import Cells
from headwise.runtime.runner import prefill

CHUNK = 16  # questions of a part of the run that is kept


def unfaithful_pairs(
    model: Model,
    records: Sequence[GroundedRecord],
    composer: GroundedComposer,
    checker: SupportChecker,
    without: Without | None,
    options: UnfaithfulOptions | None = None,
    directory: Cells | None = None,
    report: Report = silent,
) -> tuple[list[Pair], dict[str, int]]:
    """An unfaithful answer beside the first reference of each record, before any filter (see `kept_pairs`).

    Args:
        model: With its tokenizer.
        records: Those without a reference or documents, that the documents do not answer, or that do not fit are dropped and counted.
        composer: Makes the prompts; without a chat template an answer is one line.
        checker: Says how far documents support both answers.
        without: The heads that are taken away, how, and where (`scope="all"` as we read the paper). None: another record's reference stands in the
            answer's place, as the simplest entity swap, which the question's documents do not mention.
        options: Length, draws, seed.
        directory: Finished questions are kept there.
        report: Called with (done, total, remark).

    Returns:
        Pairs in the order of the records, and reason -> records that were dropped.

    Raises:
        HeadwiseError: No heads, heads of another model, or no record that can be asked.
    """
    options = options or UnfaithfulOptions()
    if without is not None and not len(model.check(without.heads)):
        raise HeadwiseError("no heads are taken away; give at least one")
    maker = _Maker(model, composer, checker, options, without)
    used, dropped = maker.usable(records)
    answer = maker.ablated if without is not None else partial(maker.swapped, [record.references[0] for record in used])
    pairs: list[Pair] = []
    for start in range(0, len(used), CHUNK):
        part, key = used[start : start + CHUNK], f"answers-{start}"
        kept = directory.load(key) if directory else None
        if kept is None:
            kept = ({}, maker.told(part, answer(part, start)))
            if directory:
                directory.save(key, *kept)
        pairs += [Pair(record, Said(**row["faithful"]), Said(**row["unfaithful"])) for record, row in zip(part, kept[1], strict=True)]
        report(len(pairs), len(used), "")
    return pairs, dropped


def describe_unfaithful(
    model: Model,
    records: Sequence[GroundedRecord],
    composer: GroundedComposer,
    checker: SupportChecker,
    without: Without | None,
    options: UnfaithfulOptions,
) -> dict[str, Any]:
    """All that decides the pairs, as plain data. Arguments as for `unfaithful_pairs`."""
    told = json.dumps([record.row() for record in records], sort_keys=True).encode()
    source: dict[str, Any] = {"source": "swap"}
    if without is not None:
        heads = model.check(without.heads)
        away = {"heads_away": [str(head) for head in heads], "chosen_by": heads.chosen_by}
        source = {"source": "heads", **away, "mode": without.mode, "scope": without.scope}
    return describe_model(model) | {
        "kind": "unfaithful",
        "options": asdict(options),
        "checker": checker.describe(),
        "records": {"given": len(records), "digest": hashlib.sha256(told).hexdigest()[:16]},
        "composer": composer.describe(),
        "fingerprint": model.fingerprint,
        **source,
    }


class _Maker:
    """Answers and what is known of them."""

    def __init__(
        self, model: Model, composer: GroundedComposer, checker: SupportChecker, options: UnfaithfulOptions, without: Without | None
    ) -> None:
        self._model, self._composer, self._checker, self._options, self._without = model, composer, checker, options, without
        self._stop: Stops = stop_ids(model, composer.opens_thought, lines=not composer.chat)

    def usable(self, records: Sequence[GroundedRecord]) -> tuple[list[GroundedRecord], dict[str, int]]:
        """Records that can be asked and have an answer that fits, and why the others cannot be used."""
        dropped: Counter[str] = Counter()
        good = []
        for record in records:
            if reason := self._unfit(record):
                dropped[reason] += 1
            else:
                good.append(record)
        if not good:
            why = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none were given"
            raise HeadwiseError(f"none of {len(records)} questions can be used ({why}); give questions with documents and reference answers")
        used, more = askable(self._model, good, self._composer, self._options.max_new_tokens)
        return used, dict(dropped + Counter(more))

    def ablated(self, records: Sequence[GroundedRecord], start: int) -> list[tuple[str, bool]]:
        """Text of each answer without the heads, and whether it ended."""
        without, limit = self._without, self._options.max_new_tokens
        prompts, limits = [self._composer.opened(record).ids for record in records], [limit] * len(records)
        with ExitStack() as blocks:
            if without is not None:
                blocks.enter_context(ablate(self._model, without.heads, without.mode, without.scope))
            if self._options.temperature == 0:
                said = greedy_answers(self._model.hf, prompts, limits, self._stop)
            else:
                draws = [self._draw(start + place) for place in range(len(records))]
                said = drawn_answers(self._model.hf, prompts, limits, self._stop, draws)
        return [(read_answer(self._model.tokenizer, ids, self._stop).strip(), ends(self._stop, ids)) for ids in said]

    def swapped(self, pool: Sequence[str], records: Sequence[GroundedRecord], start: int) -> list[tuple[str, bool]]:
        """The reference of another record, which neither the question nor its documents mention; empty where there is none."""
        found = []
        for place, record in enumerate(records, start):
            rng = np.random.default_rng([self._options.seed, 107, place])
            around = "\n".join((record.question, *(text for document in record.documents for text in document)))
            found.append((next(substitutes(record.references, around, pool, rng), ""), True))
        return found

    def told(self, records: Sequence[GroundedRecord], answers: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Both answers of each record with support, length and loss."""
        rows = []
        for record, (text, ended) in zip(records, answers, strict=True):
            prompt, reference = self._composer.opened(record), record.references[0]
            losses = self._losses(prompt, (reference, text))
            sides = zip((reference, text), losses, (True, ended), strict=True)
            faithful, unfaithful = (Said(said, self._support(said, record), *loss, finished) for said, loss, finished in sides)
            rows.append({"faithful": faithful._asdict(), "unfaithful": unfaithful._asdict()})
        return rows

    def _unfit(self, record: GroundedRecord) -> str:
        if not record.references:
            return "no reference answer"
        if not record.answerable:
            return "not answered by its documents"
        if not record.documents:
            return "no documents"
        tokens = self._encoded(self._composer.opened(record), record.references[0])
        if tokens is None:
            return "a reference that cannot follow the prompt"
        return "a reference longer than max_new_tokens" if len(tokens) > self._options.max_new_tokens else ""

    def _draw(self, place: int) -> Callable[[Tensor], int]:
        seed = int(np.random.SeedSequence([self._options.seed, 109, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(seed)
        return partial(sampled, temperature=self._options.temperature, top_p=self._options.top_p, generator=generator)

    def _support(self, text: str, record: GroundedRecord) -> float:
        return check_answer(self._checker, text, record.documents).mean or 0.0

    def _encoded(self, prompt: Prompt, text: str) -> tuple[int, ...] | None:
        """The answer's tokens behind the prompt; None where it cannot stand there."""
        try:
            return answer_ids(self._composer.encoder, prompt, text)
        except PromptError:
            return None

    def _losses(self, prompt: Prompt, texts: Sequence[str]) -> list[tuple[int, float]]:
        """Length and mean loss of answers under the model with all heads; the prompt is read once."""
        encoded = [self._encoded(prompt, text) or () for text in texts]
        with torch.no_grad(), attached(self._model):
            past = full_cache(self._model.hf)
            prefill(self._model.hf, past, prompt.ids[:-1])
            return [(len(ids), self._loss(past, prompt.ids[-1:], ids)) if ids else (0, 0.0) for ids in encoded]

    def _loss(self, past: Any, rest: Sequence[int], ids: Sequence[int]) -> float:
        return -float(verify_draft(self._model.hf, fork(past), rest, ids).logprob[0]) / len(ids)
