"""Correction, resistance, agreement: whom a decoder follows when passage and memory differ, and which of the two is right.

Memory is what the model answers without a passage (greedy). Each question is asked with a passage that holds the right answer and with the same
passage in which the answer was swapped:

- *correction*: the passage is right, memory is wrong: the share of answers that follow the passage;
- *resistance*: the passage is wrong, memory is right: the share of answers that keep to memory;
- *agreement*: both are right: the share of right answers.

A decoder that trusts passages more raises correction, and mostly lowers resistance: neither says anything without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.evaluation.conflict import unusable
from headwise.evaluation.decoders import PLAIN, Decoder, checked_decoders
from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent
from headwise.models.model import Model, describe_model
from headwise.prompts.encoder import Stops, read_answer
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord
from headwise.prompts.mentions import mentions
from headwise.runtime.answer import stop_ids
from headwise.runtime.options import check_least, check_seed
from headwise.runtime.rundir import Cells
from headwise.stats.paired import bootstrap_mean, correct, sign_flip_test

MEASURES = ("correction", "resistance", "agreement")
LEAST = 20  # questions in a cell, below which it is not tested
DRAWS = 2_000  # bootstrap draws per interval
TRUTHS = {"correction": (False, True), "resistance": (True, False), "agreement": (True, True)}  # (memory is right, passage is right)
Table = NDArray[np.float64]


@dataclass(frozen=True)
class FaithfulOptions:
    """How it is measured.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        min_questions: Fewest questions that a measure rests on; with fewer it is not testable.
        seed: Of intervals and tests.

    Raises:
        HeadwiseError: A value out of range.
    """

    max_new_tokens: int = 20
    min_questions: int = LEAST
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(1, max_new_tokens=self.max_new_tokens, min_questions=self.min_questions)
        check_seed(self.seed)


@dataclass(frozen=True)
class Asked:
    """One question and what was answered.

    Attributes:
        name: What tables call it.
        memory: The answer without a passage.
        knows: Whether it is right.
        answers: (passage is right, decoder) -> answer.
        right: (passage is right, decoder) -> whether it holds the right answer, and with a swapped passage not the swapped one.
        follows: Decoder -> whether it gives the swapped answer beside the swapped passage.
    """

    name: str
    memory: str
    knows: bool
    answers: Mapping[tuple[bool, str], str]
    right: Mapping[tuple[bool, str], bool]
    follows: Mapping[str, bool]


@dataclass(frozen=True)
class FaithfulResult:
    """What every decoder did.

    Attributes:
        model: Name of the model.
        decoders: Their names, `plain` first.
        asked: Every question.
        dropped: Reason -> questions that could not be asked.
        options: How it was measured.
        provenance: All that is needed to repeat it.
    """

    model: str
    decoders: tuple[str, ...]
    asked: tuple[Asked, ...]
    dropped: Mapping[str, int]
    options: FaithfulOptions
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def values(self, measure: str, decoder: str) -> Table:
        """[n] 1 where a decoder's answer counts, over the questions that a measure rests on."""
        knows, told = TRUTHS[measure]
        return np.asarray([one.right[told, decoder] for one in self.asked if one.knows == knows], dtype=np.float64)

    def rows(self) -> list[dict[str, Any]]:
        """One row per decoder and measure.

        Returns:
            `model`, `decoder`, `measure`, `questions` (how many it rests on), `testable`. Where there are enough questions: `share` with its 95 %
            interval over questions (`low`, `high`), `words` (mean length of the answers), for resistance `follows` (share that gives the swapped
            answer); of decoders but `plain` also `difference` to it on the same questions with its interval, `p` (sign flips over questions)
            and `p_corrected` (Benjamini-Hochberg over all rows of the result).
        """
        rows = [self._row(decoder, measure) for decoder in self.decoders for measure in MEASURES]
        correct(rows)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        items = [
            {
                "name": one.name,
                "memory": one.memory,
                "memory_right": one.knows,
                "answers": {
                    decoder: {
                        name: {"answer": one.answers[told, decoder], "right": one.right[told, decoder]}
                        for name, told in (("right_passage", True), ("swapped_passage", False))
                        if (told, decoder) in one.answers
                    }
                    for decoder in self.decoders
                },
            }
            for one in self.asked
        ]
        return {**self.provenance, "model": self.model, "dropped": dict(self.dropped), "rows": self.rows(), "items": items}

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the result as JSON, atomically. Raises `HeadwiseError` if the file exists and is not to be replaced."""
        write_json(self.to_json(), path, overwrite)

    def _row(self, decoder: str, measure: str) -> dict[str, Any]:
        values, (knows, told) = self.values(measure, decoder), TRUTHS[measure]
        enough = len(values) >= self.options.min_questions
        row: dict[str, Any] = {"model": self.model, "decoder": decoder, "measure": measure, "questions": len(values), "testable": enough}
        if not enough:
            return row
        own = [one for one in self.asked if one.knows == knows]
        row |= zip(("share", "low", "high"), bootstrap_mean(values, draws=DRAWS, seed=self.options.seed), strict=True)
        row["words"] = float(np.mean([len(one.answers[told, decoder].split()) for one in own]))
        if measure == "resistance":
            row["follows"] = float(np.mean([one.follows[decoder] for one in own]))
        if decoder == PLAIN:
            return row
        change = values - self.values(measure, PLAIN)
        names = ("difference", "difference_low", "difference_high")
        row |= zip(names, bootstrap_mean(change, draws=DRAWS, seed=self.options.seed), strict=True)
        return row | {"p": sign_flip_test(change, seed=self.options.seed)}


def measure_faithful(
    model: Model,
    records: Sequence[KnowledgeRecord],
    composer: KnowledgeComposer,
    decoders: Mapping[str, Decoder] | None = None,
    options: FaithfulOptions | None = None,
    directory: Cells | None = None,
    report: Report = silent,
) -> FaithfulResult:
    """Measure correction, resistance and agreement of plain decoding and of other decoders.

    A swapped passage is read only for questions whose answer the model knows; no measure rests on the others.

    Args:
        model: With its tokenizer.
        records: With passages and swapped passages (`swap_answers`); those that cannot be used are dropped and counted.
        composer: Makes the prompts.
        decoders: Name -> decoder, besides `plain`.
        options: Length of answers, fewest questions.
        directory: Finished questions are kept there and not asked again.
        report: Called with (done, total, remark).

    Raises:
        HeadwiseError: A decoder called `plain`.
        NoSuccessfulRunError: No question can be asked.
    """
    options = options or FaithfulOptions()
    stop = stop_ids(model, composer.chat and composer.builder.opens_thought)
    every = checked_decoders(model, decoders or {}, stop, options.max_new_tokens)
    used, dropped = usable_questions(model, records, composer, options)
    asked = []
    for number, record in enumerate(used):
        kept = directory.load(f"question-{number}") if directory else None
        said = kept[1][0] if kept else _said(model, record, composer, every, stop)
        if directory and not kept:
            directory.save(f"question-{number}", {}, [said])
        asked.append(_judged(record, said, tuple(every)))
        report(number + 1, len(used), f"{sum(one.knows for one in asked)} of {number + 1} known")
    told = describe_faithful(model, records, composer, list(every), options)
    return FaithfulResult(model.name, tuple(every), tuple(asked), dropped, options, told)


def describe_faithful(
    model: Model, records: Sequence[KnowledgeRecord], composer: KnowledgeComposer, decoders: Sequence[str], options: FaithfulOptions
) -> dict[str, Any]:
    """All that decides the result as plain data; what a `RunDirectory` of `measure_faithful` is described by.

    Args:
        model: As there.
        records: As there.
        composer: As there.
        decoders: Names, each with all that decides what its decoder says.
        options: As there.
    """
    told = json.dumps([record.row() for record in records], sort_keys=True).encode()
    return {
        "kind": "faithful",
        "decoders": list(decoders),
        "options": asdict(options),
        "records": {"given": len(records), "digest": hashlib.sha256(told).hexdigest()[:16]},
        "composer": composer.describe(),
        "fingerprint": model.fingerprint,
    } | describe_model(model)


def usable_questions(
    model: Model, records: Sequence[KnowledgeRecord], composer: KnowledgeComposer, options: FaithfulOptions
) -> tuple[list[KnowledgeRecord], dict[str, int]]:
    """Questions that can be asked both ways, and how many were dropped for which reason.

    Raises:
        NoSuccessfulRunError: None is left.
    """
    dropped: Counter[str] = Counter()
    kept = []
    for record in records:
        if reason := _unfit(record, composer, model.positions, options.max_new_tokens):
            dropped[reason] += 1
        else:
            kept.append(record)
    if not kept:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none were given"
        raise NoSuccessfulRunError(f"none of {len(records)} questions can be asked with a right and a swapped passage ({why})")
    return kept, dict(dropped)


def _unfit(record: KnowledgeRecord, composer: KnowledgeComposer, positions: int | None, room: int) -> str:
    if record.passage is None:
        return "no passage"
    if not mentions(record.passage.text, record.answers):
        return "the passage does not mention the answer"
    if reason := unusable(record, composer, positions, room, apart=False):
        return reason
    if positions is not None and len(composer.opened(record).ids) + room > positions:
        return "longer than the model's context"
    return ""


def _said(
    model: Model, record: KnowledgeRecord, composer: KnowledgeComposer, decoders: Mapping[str, Decoder], stop: Stops
) -> dict[str, Any]:
    """All answers to one question: `memory`, `right` and `swapped` by decoder; the last is empty where memory is wrong."""

    def answer(decoder: Decoder, prompt: Any) -> str:
        return read_answer(model.tokenizer, decoder(prompt, closed), stop).strip()

    closed = composer.closed(record)
    memory = answer(decoders[PLAIN], closed)
    told = {name: answer(decoder, composer.opened(record)) for name, decoder in decoders.items()}
    knows = mentions(memory, record.answers)
    swapped = {name: answer(decoder, composer.opened(record, swapped=True)) for name, decoder in decoders.items() if knows}
    return {"memory": memory, "right": told, "swapped": swapped}


def _judged(record: KnowledgeRecord, said: Mapping[str, Any], decoders: Sequence[str]) -> Asked:
    known = {True: said["right"], False: said["swapped"]}
    answers = {(told, name): texts[name] for told, texts in known.items() for name in decoders if name in texts}
    wrong = (record.swapped_answer,)
    right = {
        (told, name): mentions(text, record.answers) and (told or not mentions(text, wrong)) for (told, name), text in answers.items()
    }
    follows = {name: mentions(answers[False, name], wrong) for name in decoders if (False, name) in answers}
    return Asked(record.label, said["memory"], mentions(said["memory"], record.answers), answers, right, follows)


def check_same_questions(result: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Refuse to put two results beside one another that asked different questions.

    Args:
        result: Data of a result.
        other: Of another one.
        name: What messages call the other one.

    Raises:
        HeadwiseError: It is no such result, or of other questions.
    """
    if other.get("kind") != result["kind"] or not isinstance(other.get("rows"), list):
        raise HeadwiseError(f"{name} is no result of this measurement; give one that headwise bench faithful wrote on the same data")
    if other.get("records") != result["records"]:
        raise HeadwiseError(f"{name} asked other questions, so its numbers do not stand beside these; measure it on the same data")
