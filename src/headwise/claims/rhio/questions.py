"""Questions with documents: to learn faithful and unfaithful answers from, and to judge them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from headwise.claims.cut_passages import cut
from headwise.claims.experiment import Bench
from headwise.evaluation.support import LexicalOverlap, SupportChecker
from headwise.heads.errors import HeadwiseError
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.mentions import mentions
from headwise.prompts.ranking_data import read_ranking_examples
from headwise.prompts.swaps import swap_answers


class Asked(NamedTuple):
    """One prompt of the judged part.

    Attributes:
        record: The question with the documents that are shown.
        cell: What it counts for: `support`, `correction`, `resistance` or `agreement`.
        wrong: The swapped answer, where the documents hold it.
    """

    record: GroundedRecord
    cell: str
    wrong: str = ""


class Questions(NamedTuple):
    """What a run learns from and is judged on.

    Attributes:
        train: With references.
        judge: Makes the prompts that are judged, from the model's answers without documents (asked for `closed`).
        closed: Questions to be asked without documents first.
        checker: Says what is faithful.
    """

    train: list[GroundedRecord]
    judge: Callable[[Sequence[str]], list[Asked]]
    closed: list[GroundedRecord]
    checker: SupportChecker


def real(bench: Bench, words: int = 60) -> Questions:
    """NQ, whose short answers stand in the passage."""
    rows = [cut(one, words) for one in read_ranking_examples(bench.folder("nq-open-oracle") / "nq-open-oracle.jsonl.gz")]
    learn, ask, most_known, most_unknown = bench.pick((300, 400, 40, 80), (16, 16, 4, 8))
    records = []
    for one in rows:
        passage = one.passages[0]
        held = [answer for answer in one.answers if mentions(passage.text, (answer,))]
        if held and len(held[0].split()) <= 5:
            answers = (held[0], *(answer for answer in one.answers if answer != held[0]))
            records.append(KnowledgeRecord(one.query, answers, passage, name=one.name))
    swapped = swap_answers(records, seed=97)
    chosen = [swapped[place] for place in np.random.default_rng(97).permutation(len(swapped))]
    learnt, others = chosen[:learn], chosen[learn : learn + ask]

    def judge(memory: Sequence[str]) -> list[Asked]:
        knows = [mentions(said, one.answers) for said, one in zip(memory, others, strict=True)]
        known = [one for one, known in zip(others, knows, strict=True) if known][:most_known]
        unknown = [one for one, known in zip(others, knows, strict=True) if not known][:most_unknown]
        return [
            *(Asked(grounded(one), "correction") for one in unknown),
            *(Asked(grounded(one), "agreement") for one in known),
            *(Asked(grounded(one, True), "resistance", one.swapped_answer) for one in known),
        ]

    return Questions([grounded(one) for one in learnt], judge, [grounded(one) for one in others], LexicalOverlap())


def grounded(record: KnowledgeRecord, swapped: bool = False) -> GroundedRecord:
    """The question behind its passage, or behind the swapped one; the answers are references and facts."""
    passage = record.swapped if swapped else record.passage
    if passage is None:
        raise HeadwiseError(f"{record.name} has no passage")
    return GroundedRecord(record.question, (passage,), record.answers, record.answers, name=record.name)
