"""Questions for tracing: NQ with swapped answers, HotpotQA, PopQA.

NQ is cut by place: of ten records eight are for fitting a probe, one for the learned weights, one for the test. Beside the
swapped passage stand passages of other test questions that do not mention the answer. The order of passages is random, seeded by question.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.mentions import mentions
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Prompt
from headwise.prompts.swaps import swap_answers

TENTHS = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "weights": (8,), "test": (9,)}
SEED = 18


class Item(NamedTuple):
    """A question with passages.

    Attributes:
        name: Of the question.
        record: Question, answers, and the swapped answer that stands in the passages (HotpotQA: the right one).
        passages: In the order in which they stand.
        gold: Places of those that hold the answer.
    """

    name: str
    record: KnowledgeRecord
    passages: tuple[Passage, ...]
    gold: tuple[int, ...]

    @property
    def answer(self) -> str:
        """What stands in the passages."""
        return self.record.swapped_answer or self.record.answers[0]

    def prompt(self, composer: KnowledgeComposer) -> Prompt:
        """The question behind all passages."""
        return composer.opened(self.record, swapped=bool(self.record.swapped_answer), passages=self.passages)

    def without_gold(self, composer: KnowledgeComposer) -> Prompt:
        """The same question beside the other passages only."""
        others = [passage for place, passage in enumerate(self.passages) if place not in self.gold]
        return composer.opened(self.record, passages=others)


def cut(passage: Passage, words: int, wanted: Sequence[str]) -> Passage | None:
    """About so many words around the first mention of an answer; None if none is left."""
    every = passage.text.split()
    for start in range(0, max(1, len(every) - words + 1), max(1, words // 4)):
        text = " ".join(every[start : start + words])
        if mentions(text, wanted):
            return Passage(text, passage.title)
    return None


def mixed(number: int, record: KnowledgeRecord, gold: Sequence[Passage], others: Sequence[Passage]) -> Item:
    """An item whose passages stand in a random order, seeded by its number."""
    every = [*gold, *others]
    order = np.random.default_rng([SEED, number]).permutation(len(every))
    places = tuple(place for place, i in enumerate(order) if i < len(gold))
    return Item(record.name or str(number), record, tuple(every[i] for i in order), places)


def nq_part(folder: Path, part: str) -> list[KnowledgeRecord]:
    """The records of one of `TENTHS`; `folder` holds the data set."""
    (path,) = sorted(folder.glob("*.jsonl*"))
    return [record for i, record in enumerate(_read(path)) if i % 10 in TENTHS[part]]


@cache
def _read(path: Path) -> list[KnowledgeRecord]:
    """All records; reading them takes longer than a model takes for some."""
    return list(read_knowledge(path))


def natural_questions(folder: Path, part: str, passages: int, words: int, count: int) -> list[Item]:
    """Questions of NQ behind their swapped passage and passages of other questions, in a drawn order."""
    records = swap_answers(nq_part(folder, part), SEED)
    cuts = [(record, cut(record.swapped, words, [record.swapped_answer])) for record in records if record.swapped]
    short = [(record, passage) for record, passage in cuts if passage is not None]
    out = []
    for number, (record, passage) in enumerate(short):
        wanted = (*record.answers, record.swapped_answer)
        others = [
            Passage(" ".join(r.passage.text.split()[:words]), r.passage.title)
            for r, _ in short[number + 1 :] + short[:number]
            if r.passage
        ]
        others = [other for other in others if not mentions(f"{other.title} {other.text}", wanted)][: passages - 1]
        out.append(mixed(number, record, [passage], others))
    chosen = np.random.default_rng(SEED).permutation(len(out))[:count]
    return [out[i] for i in chosen]


def hotpot(folder: Path, passages: int, words: int, count: int) -> list[Item]:
    """Questions of HotpotQA behind all paragraphs that hold the right answer, and others of their own."""
    raw = gzip.decompress((folder / "hotpotqa_dev_100.jsonl.gz").read_bytes()).decode()
    out = []
    for number, row in enumerate(json.loads(line) for line in raw.splitlines()):
        if row["answer"].lower() in ("yes", "no"):
            continue
        titles = (
            {title for title, _ in row["supporting_facts"]}
            if isinstance(row["supporting_facts"], list)
            else set(row["supporting_facts"]["title"])
        )
        context = row["context"]
        pairs = context if isinstance(context, list) else list(zip(context["title"], context["sentences"], strict=True))
        gold, others = [], []
        for title, sentences in pairs:
            passage = Passage("".join(sentences).strip(), title)
            if title in titles and mentions(passage.text, [row["answer"]]) and (short := cut(passage, words, [row["answer"]])):
                gold.append(short)
            elif not mentions(f"{title} {passage.text}", [row["answer"]]):
                others.append(Passage(" ".join(passage.text.split()[:words]), title))
        if gold and len(others) >= passages - len(gold):
            record = KnowledgeRecord(row["question"], (row["answer"],), gold[0], name=str(number))
            out.append(mixed(number, record, gold, others[: passages - len(gold)]))
    return out[:count]


def popqa(folder: Path, count: int) -> list[KnowledgeRecord]:
    """Questions without passages."""
    (path,) = sorted(folder.glob("*.json*"))
    records = read_knowledge(path)
    return [records[i] for i in np.random.default_rng(SEED).permutation(len(records))[:count]]
