"""How far a model's answers rest on the documents it was given, beside what makes such a score cheap: short answers, gaps and refusals."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwise.evaluation.decoders import PLAIN, Decoder, checked_decoders
from headwise.evaluation.support import SUPPORTED, SupportChecker, check_answer, coverage
from headwise.heads.errors import NoSuccessfulRunError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import read_answer
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.mentions import mentions
from headwise.prompts.sentences import is_refusal
from headwise.runtime.answer import stop_ids
from headwise.runtime.options import check_least, check_seed
from headwise.runtime.rundir import Cells
from headwise.stats.paired import bootstrap_mean, correct, sign_flip_test

DRAWS = 2_000  # bootstrap draws per interval
Checked = Mapping[str, Any]


@dataclass(frozen=True)
class SupportOptions:
    """How it is measured. Raises `HeadwiseError` for a value out of range.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        seed: Of intervals and tests.
    """

    max_new_tokens: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(1, max_new_tokens=self.max_new_tokens)
        check_seed(self.seed)


@dataclass(frozen=True)
class SupportResult:
    """Answers of every decoder, checked.

    Attributes:
        model: Name of the model.
        decoders: Their names, `plain` first.
        records: What was asked.
        checked: [record] decoder -> see `judged_answer`.
        dropped: Reason -> questions that could not be asked.
        options: How it was measured.
        provenance: All that is needed to repeat it.
    """

    model: str
    decoders: tuple[str, ...]
    records: tuple[GroundedRecord, ...]
    checked: tuple[Mapping[str, Checked], ...]
    dropped: Mapping[str, int]
    options: SupportOptions
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One row per decoder; questions that the documents answer and those that they do not are kept apart.

        Returns:
            `model`, `decoder`, and three groups of numbers; what rests on no answer is None.

            Over answerable questions: `questions`, `refusals` (share), `coverage` (mean; a refusal covers nothing; None where no question has
            facts or references), `words` (mean length).

            Over those of them that were answered and not refused: `answered` (how many), `support` (mean over answers of the mean over sentences)
            with `low` and `high` (95 % over questions), `supported` (share of all sentences), `full` (share of the answers whose sentences are
            all supported), `incomplete` (share with some), `errors` (label -> sentences, where the checker tells). Of decoders but `plain` also
            `difference` of support on questions that both answered, its interval, `p` and `p_corrected`, as in `FaithfulResult.rows`.

            Over unanswerable ones: `unanswerable` (how many) and `unanswerable_refusals` (share).
        """
        rows = [self._row(decoder) for decoder in self.decoders]
        correct(rows)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        items = [
            {"name": record.label, "answerable": record.answerable, "answers": {name: dict(one) for name, one in answers.items()}}
            for record, answers in zip(self.records, self.checked, strict=True)
        ]
        return {**self.provenance, "model": self.model, "dropped": dict(self.dropped), "rows": self.rows(), "items": items}

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the result as JSON, atomically. Raises `HeadwiseError` if the file exists and is not to be replaced."""
        write_json(self.to_json(), path, overwrite)

    def _row(self, decoder: str) -> dict[str, Any]:
        own = [answers[decoder] for record, answers in zip(self.records, self.checked, strict=True) if record.answerable]
        others = [answers[decoder] for record, answers in zip(self.records, self.checked, strict=True) if not record.answerable]
        answered = [one for one in own if _counts(one)]
        row: dict[str, Any] = {"model": self.model, "decoder": decoder, "questions": len(own), "answered": len(answered)}
        row |= {"refusals": _mean([one["refused"] for one in own]), "words": _mean([one["words"] for one in own])}
        row["coverage"] = _mean([one["coverage"] for one in own if one["coverage"] is not None])
        row |= self._interval([one["support"] for one in answered], ("support", "low", "high"))
        scores = [score >= SUPPORTED for one in answered for score in one["scores"]]
        row["supported"] = _mean(scores)
        row |= {name: _mean([one["error"] == error for one in answered]) for name, error in (("full", "none"), ("incomplete", "incomplete"))}
        row["errors"] = dict(Counter(label for one in answered for label in one["labels"]))
        row |= {"unanswerable": len(others), "unanswerable_refusals": _mean([one["refused"] for one in others])}
        if decoder != PLAIN:
            both = [(a[decoder], a[PLAIN]) for r, a in zip(self.records, self.checked, strict=True) if r.answerable]
            change = [one["support"] - plain["support"] for one, plain in both if _counts(one) and _counts(plain)]
            row |= self._interval(change, ("difference", "difference_low", "difference_high"))
            row["p"] = sign_flip_test(np.asarray(change), seed=self.options.seed) if change else None
        return row

    def _interval(self, values: Sequence[float], names: tuple[str, str, str]) -> dict[str, float | None]:
        if not values:
            return dict.fromkeys(names)
        found = bootstrap_mean(np.asarray(values, dtype=np.float64), draws=DRAWS, seed=self.options.seed)
        return dict(zip(names, found, strict=True))


def measure_support(
    model: Model,
    records: Sequence[GroundedRecord],
    composer: GroundedComposer,
    checker: SupportChecker,
    decoders: Mapping[str, Decoder] | None = None,
    options: SupportOptions | None = None,
    directory: Cells | None = None,
    report: Report = silent,
) -> SupportResult:
    """Answer questions from their documents and check every sentence.

    Answers are greedy. Without a chat template an answer is one line, because base models go on with further questions.

    Args:
        model: With its tokenizer.
        records: Questions with documents; those that cannot be asked are dropped and counted.
        composer: Makes the prompts.
        checker: Scores sentences against chunks of the documents.
        decoders: Name -> decoder, besides `plain`.
        options: Length of answers.
        directory: Finished questions are kept there and not asked again.
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: A decoder called `plain`.
        NoSuccessfulRunError: No question can be asked.
    """
    options = options or SupportOptions()
    stop = stop_ids(model, composer.opens_thought, lines=not composer.chat)
    every = checked_decoders(model, decoders or {}, stop, options.max_new_tokens)
    used, dropped = askable(model, records, composer, options.max_new_tokens)
    checked = []
    for number, record in enumerate(used):
        kept = directory.load(f"question-{number}") if directory else None
        if kept is None:
            opened, closed = composer.opened(record), composer.closed(record)
            said = {name: read_answer(model.tokenizer, decoder(opened, closed), stop).strip() for name, decoder in every.items()}
            kept = ({}, [{name: judged_answer(checker, text, record) for name, text in said.items()}])
            if directory:
                directory.save(f"question-{number}", *kept)
        checked.append(kept[1][0])
        report(number + 1, len(used), f"{sum(_counts(one[PLAIN]) for one in checked)} of {number + 1} answered")
    told = describe_support(model, records, composer, checker, list(every), options)
    return SupportResult(model.name, tuple(every), tuple(used), tuple(checked), dropped, options, told)


def judged_answer(checker: SupportChecker, answer: str, record: GroundedRecord) -> dict[str, Any]:
    """What is known of one answer.

    Args:
        checker: Scores its sentences.
        answer: What was said.
        record: What was asked.

    Returns:
        Plain data: `answer`, `words`, `refused`, `sentences`, `scores`, `labels`, `support` (mean of the scores), `error` (see `AnswerSupport`), and
        `coverage`: the share of the record's facts that are mentioned; without facts, that of the best reference (see `coverage`).
    """
    found, refused = check_answer(checker, answer, record.documents), is_refusal(answer)
    if record.facts:
        covered: float | None = float(np.mean([mentions(answer, (fact,)) for fact in record.facts]))
    else:
        covered = coverage(checker, answer, record.references)
    return {
        "answer": answer, "words": len(answer.split()), "refused": refused, "sentences": list(found.sentences),
        "scores": found.scores.tolist(), "labels": list(found.labels), "support": found.mean, "error": found.error,
        "coverage": 0.0 if refused and covered is not None else covered,
    }  # fmt: skip


def describe_support(
    model: Model,
    records: Sequence[GroundedRecord],
    composer: GroundedComposer,
    checker: SupportChecker,
    decoders: Sequence[str],
    options: SupportOptions,
) -> dict[str, Any]:
    """All that decides the result as plain data; what a `RunDirectory` of `measure_support` is described by. Arguments as for `describe_faithful`."""
    told = json.dumps([record.row() for record in records], sort_keys=True).encode()
    return {
        "kind": "support",
        "decoders": list(decoders),
        "options": asdict(options),
        "checker": checker.describe(),
        "records": {"given": len(records), "digest": hashlib.sha256(told).hexdigest()[:16]},
        "composer": composer.describe(),
        "fingerprint": model.fingerprint,
    } | describe_model(model)


def askable(
    model: Model, records: Sequence[GroundedRecord], composer: GroundedComposer, room: int
) -> tuple[list[GroundedRecord], dict[str, int]]:
    """Questions that can be asked, and how many were dropped for which reason.

    Args:
        model: As for `measure_support`.
        records: Likewise.
        composer: Likewise.
        room: Longest answer in tokens.

    Raises:
        NoSuccessfulRunError: None is left.
    """
    dropped: Counter[str] = Counter()
    kept = []
    for record in records:
        if not record.documents:
            dropped["no documents"] += 1
        elif model.positions is not None and len(composer.opened(record).ids) + room > model.positions:
            dropped["longer than the model's context"] += 1
        else:
            kept.append(record)
    if not kept:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none were given"
        raise NoSuccessfulRunError(f"none of {len(records)} questions can be asked ({why}); allow fewer new tokens, or give shorter documents")
    return kept, dict(dropped)


def _counts(one: Checked) -> bool:
    """Whether an answer has sentences to support: a refusal rests on nothing."""
    return not one["refused"] and one["support"] is not None


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None
