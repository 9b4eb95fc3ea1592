"""Which records of a question file count for a model: their prompts, targets, and why others are dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.prompt import Prompt, chat_arguments
from headwise.prompts.swaps import swap_answers
from headwise.runtime.knowledge_questions import KnowledgeQuestions
from headwise.runtime.relevance import Target, ranks

LOST, LONG = "a text does not survive tokenisation", "longer than the model's context"
ALIKE = "both answers begin with the same token"
CLOSED, OPENED = "the right answer is not given without the passage", "the swapped answer is not given with the passage"
_LAST_RANK = {"first": 0, "top5": 4, "top10": 9, "answer": 0}


class Question(NamedTuple):
    """A record as it is asked.

    Attributes:
        place: Its number among the swapped records of the file.
        record: What is asked.
        closed: The question alone.
        opened: Behind its swapped passage.
        right: First token of the right answer.
        swapped: First token of the swapped one.
    """

    place: int
    record: KnowledgeRecord
    closed: Prompt
    opened: Prompt
    right: int
    swapped: int

    @property
    def length(self) -> int:
        """Tokens of the longer prompt with its answer."""
        return len(self.opened.ids) + len(self.opened.gold)


class Asked(NamedTuple):
    """The records of a file, ready to be asked.

    Attributes:
        records: Those with a swapped passage, in a random order of the seed, without the examples.
        composer: Makes their prompts.
        dropped: Reason -> how many could not be swapped.
        source: What results call the file.
        digest: Of all records and examples.
    """

    records: list[KnowledgeRecord]
    composer: KnowledgeComposer
    dropped: Counter[str]
    source: str
    digest: str


def ask(model: Model, options: KnowledgeQuestions) -> Asked:
    """Read, swap and shuffle the records.

    Raises:
        PromptError: A file that cannot be read, or a chat template that cannot be used.
        HeadwiseError: No record can be swapped.
    """
    if isinstance(options.data, Path):
        records: Sequence[KnowledgeRecord] = read_knowledge(options.data, options.layout)
        source = options.data.name
    else:
        records, source = _given_records(options.data), "records given in Python"
    dropped: Counter[str] = Counter()
    swapped = swap_answers(records, options.seed, dropped)
    order = np.random.default_rng([options.seed, 37]).permutation(len(swapped))
    shuffled = [swapped[i] for i in order]
    if len(shuffled) <= options.shots:
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        raise HeadwiseError(
            f"{source} holds {len(shuffled)} questions whose answer can be swapped in a passage ({reasons or 'it is empty'})"
        )
    shots, shuffled = shuffled[: options.shots], shuffled[options.shots :]
    arguments = chat_arguments(options.chat_template_args)
    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), options.wording, options.chat, arguments, shots)
    text = json.dumps([one.row() for one in (*shots, *shuffled)], ensure_ascii=False)
    return Asked(shuffled, composer, dropped, source, hashlib.sha256(text.encode()).hexdigest()[:16])


def _given_records(data: Any) -> Sequence[KnowledgeRecord]:
    records = tuple(data)
    if not all(isinstance(record, KnowledgeRecord) for record in records):
        raise HeadwiseError("data must be the path of a file, or KnowledgeRecords (headwise.prompts.knowledge)")
    return records


def usable(
    model: Model, asked: Asked, places: range, followed: str, closed: bool = True
) -> tuple[list[Question], dict[int, str]]:
    """The records of a stretch that count, and why the others do not.

    Args:
        model: It has to give the answers.
        asked: The records.
        places: Which of them.
        followed: See `KnowledgeQuestions`.
        closed: Whether the right answer must be given without the passage too.

    Returns:
        (questions in order, place -> reason).
    """
    questions, dropped = [], {}
    for place in places:
        try:
            question = _question(asked.composer, place, asked.records[place])
        except PromptError:
            dropped[place] = LOST
            continue
        if question.right == question.swapped:
            dropped[place] = ALIKE
        elif model.positions is not None and question.length > model.positions:
            dropped[place] = LONG
        else:
            questions.append(question)
    if followed != "any":
        if closed:
            questions = _given(model, questions, followed, False, dropped)
        questions = _given(model, questions, followed, True, dropped)
    return questions, dropped


def _question(composer: KnowledgeComposer, place: int, record: KnowledgeRecord) -> Question:
    closed, opened = composer.closed(record), composer.opened(record, swapped=True)
    return Question(place, record, closed, opened, closed.gold[0], opened.gold[0])


def _given(model: Model, questions: list[Question], followed: str, opened: bool, dropped: dict[int, str]) -> list[Question]:
    """The questions whose answer the model gives; the others are noted as dropped."""
    if not questions:
        return []
    prompts = [question.opened if opened else question.closed for question in questions]
    targets: list[Target] = [prompt.gold if followed == "answer" else prompt.gold[0] for prompt in prompts]
    kept = []
    for question, rank in zip(questions, ranks(model, prompts, targets), strict=True):
        if rank <= _LAST_RANK[followed]:
            kept.append(question)
        else:
            dropped[question.place] = OPENED if opened else CLOSED
    return kept


def describe_questions(asked: Asked, options: KnowledgeQuestions) -> dict[str, Any]:
    """All that decides which records count and how they are asked, as plain data."""
    stated = {name: getattr(options, name) for name in ("rule", "followed", "records", "min_records", "shots", "seed")}
    return stated | {"data": asked.source, "data_digest": asked.digest} | asked.composer.describe()
