"""Reading the questions whose answers are challenged: needles or records, each with a wrong answer of its kind; see `doubt_asked`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.models.model import Model
from headwise.prompts.dialogue import DoubtItem, question_key, wrong_answers
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.mentions import mentions
from headwise.prompts.prompt import PromptBuilder, chat_arguments
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.needle_runs import needle_task

Read = tuple[list[DoubtItem], str, str, PromptBuilder, str]


def read_items(model: Model, options: DoubtQuestions, dropped: Counter[str]) -> Read:
    """All questions, of whatever part.

    Args:
        model: With its tokenizer.
        options: Where they come from.
        dropped: Counts those that cannot be asked, by reason.

    Returns:
        The questions, what stands in front of one and behind it without a chat template, what makes prompts, and the name of the source.

    Raises:
        HeadwiseError: A file that cannot be read or has no answers.
    """
    return (_needles if options.data is None else _records)(model, options, dropped)


def _needles(model: Model, options: DoubtQuestions, dropped: Counter[str]) -> Read:
    from headwise.prompts.grid import even_depths, group_specs, make_group
    from headwise.prompts.needles import bundled_needles

    task = needle_task(
        model, split="detect", lengths=tuple(options.lengths), depths=even_depths(options.depths), needles=bundled_needles(),  # type: ignore[arg-type]
        chat=options.chat, chat_args=chat_arguments(options.chat_template_args), seed=options.seed,
    )  # fmt: skip
    needles = list(task.needles)
    others = wrong_answers([(one.needle, one.question, (one.answer,), "", "") for one in needles], options.seed)
    items = []
    for spec in group_specs(task.grid, len(needles)):
        needle, other = needles[spec.needle], others[spec.needle]
        if not other:
            dropped["without a wrong answer of its kind"] += 1
            continue
        group = make_group(spec, task, model.positions)
        for turn, prompt, info in zip(group.turns, group.prompts, group.info, strict=True):
            name = f"needle {spec.needle} at {info['length']} tokens, depth {info['depth']:g}"
            items.append(DoubtItem(name, needle.needle, needle.question, (needle.answer,), other, (turn,), prompt))
    return items, "Question:", "Answer:", task.composer.builder, "bundled needles"


def _records(model: Model, options: DoubtQuestions, dropped: Counter[str]) -> Read:
    data: Any = options.data
    given: list[KnowledgeRecord] = read_knowledge(data, options.layout) if isinstance(data, Path) else list(data)
    source = data.name if isinstance(data, Path) else "records given in Python"
    if not all(isinstance(record, KnowledgeRecord) for record in given):
        raise HeadwiseError("data must be the path of a file, or KnowledgeRecords (headwise.KnowledgeRecord)")
    composer = KnowledgeComposer(
        PieceEncoder(model.tokenizer), options.wording, options.chat, chat_arguments(options.chat_template_args)
    )
    others = wrong_answers([(one.question, one.question, one.answers, one.kind, one.wrong) for one in given], options.seed)
    items: list[DoubtItem] = []
    keys, names = set[str](), set[str]()
    for record, other in zip(given, others, strict=True):
        own = tuple(question_key(record.question, record.subject, answer) for answer in record.answers)
        reason = "asked before" if not keys.isdisjoint(own) else _unfit(record, other, options.passages)
        if not reason:
            try:
                composer.answer_ids(other)
                first = composer.opened(record) if options.passages else composer.closed(record)
                turns = tuple(composer.turns(record, options.passages))
            except PromptError:
                reason = "that do not survive tokenisation"
        if reason:
            dropped[reason] += 1
            continue
        keys.update(own)
        names.add(name := _new_name(record.label, names))
        items.append(DoubtItem(name, own[0], record.question, record.answers, other, turns, first, own))
    words = composer.wording
    return items, words.before_question, words.after_question, composer.builder, source


def _new_name(name: str, taken: Collection[str]) -> str:
    """The name, or one with a number behind it: results are kept by name, and beginnings of questions are often alike."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def _unfit(record: Any, other: str, passages: bool) -> str:
    if passages and (record.passage is None or record.passage.is_empty):
        return "without a passage"
    if not other:
        return "without a wrong answer of its kind"
    alike = any(
        mentions(other, (answer,)) or mentions(answer, (other,)) or _letters(answer) == _letters(other)
        for answer in record.answers
    )
    return "whose wrong answer is right" if alike else ""


def _letters(answer: str) -> str:
    """Letters and digits alone: `U.S.` is `us`, `7,731` is `7731`; the whole answer where it has none."""
    return "".join(filter(str.isalnum, answer.casefold())) or answer
