"""Records to be patched: one prompt with three passages that differ in one answer or in the sentences around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from headwise.claims.experiment import NotTestable
from headwise.heads import HeadScores
from headwise.heads.errors import PromptError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, KnowledgeWording
from headwise.prompts.mentions import mentions
from headwise.prompts.swaps import fact_passages, swap_answers
from headwise.runtime.relevance import candidates

WORDING = KnowledgeWording("Notes of a visitor follow.", "", "Page {number}:", "", "")  # heads were found with another one
SENTENCES, CHUNK = 4, 32
UNLIKE = "the two answers are not of the same number of tokens"
ALIKE = "both answers begin with the same token"
ELSEWHERE = "the other passage mentions the swapped answer"
NOT_FOLLOWED = (
    "the swapped answer is not said",
    "the right answer is not said",
    "the right answer is not said behind other sentences",
)


class Item(NamedTuple):
    """One record as it is patched.

    Attributes:
        name: Of the record.
        clean: Ids of the prompt with the right answer in its passage.
        corrupted: Ids of the prompt with the swapped one, equally many.
        elsewhere: Ids of the prompt with the right answer among other sentences.
        right: First token of the right answer.
        swapped: First token of the swapped one.
    """

    name: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    elsewhere: tuple[int, ...]
    right: int
    swapped: int

    @property
    def suffix(self) -> int:
        """Tokens from the first one on in which the two prompts differ."""
        same = [one == other for one, other in zip(self.clean, self.corrupted, strict=True)]
        return len(self.clean) - same.index(False)


class Drawn(NamedTuple):
    """A record with its three prompts' passages.

    Attributes:
        record: With passage and swapped passage.
        other: The same record with other sentences around its own.
    """

    record: KnowledgeRecord
    other: KnowledgeRecord


def drawn_records(every: Sequence[KnowledgeRecord], detection: HeadScores, seed: int, dropped: Counter[str]) -> list[Drawn]:
    """Known facts that were not used to find heads, in a drawn order.

    Raises:
        NotTestable: The scores do not say which records they were made from.
    """
    names = {str(info["name"]) for info in detection.run_info or () if "name" in info}
    if not names:
        raise NotTestable("needs in-context heads that name the records on which they were found")
    subjects = {record.subject for record in every if record.name in names}
    rest = [record for record in every if record.name not in names and record.subject not in subjects]
    others = {record.name: record for record in fact_passages(rest, SENTENCES, seed + 102)}
    swapped = swap_answers(fact_passages(rest, SENTENCES, seed + 101), seed + 101, dropped)
    order = np.random.default_rng([seed, 88]).permutation(len(swapped))
    return [Drawn(swapped[i], others[swapped[i].name]) for i in order]


def made_item(composer: KnowledgeComposer, drawn: Drawn) -> Item | str:
    """The prompts of a record, or why it cannot be used."""
    record, other = drawn
    if other.passage is None or mentions(other.passage.text, (record.swapped_answer,)):
        return ELSEWHERE
    clean, corrupted = composer.opened(record), composer.opened(record, swapped=True)
    if len(clean.ids) != len(corrupted.ids) or clean.spans != corrupted.spans:
        return UNLIKE
    if clean.gold[0] == corrupted.gold[0]:
        return ALIKE
    elsewhere = composer.opened(replace(other, swapped=None, swapped_answer=""))
    return Item(record.name, clean.ids, corrupted.ids, elsewhere.ids, clean.gold[0], corrupted.gold[0])


def patch_items(model: Model, drawn: Sequence[Drawn], dropped: Counter[str], most: int, only: Sequence[str] = ()) -> list[Item]:
    """The first records that count.

    Args:
        model: It has to say each passage's answer first.
        drawn: See `drawn_records`.
        dropped: Counts the others by reason.
        most: At most so many.
        only: Names of the records that are known to count, so that the model is not asked.
    """
    composer, items = KnowledgeComposer(PieceEncoder(model.tokenizer), WORDING), []
    for record in drawn:
        if only and record.record.name not in only:
            continue
        try:
            made: Item | str = made_item(composer, record)
        except PromptError:
            made = "a text does not survive tokenisation"
        if isinstance(made, str):
            dropped[made] += 1
        else:
            items.append(made)
    if only:
        return items
    kept: list[Item] = []
    for item, reason in _followed(model, composer, drawn, items):
        if reason:
            dropped[reason] += 1
        else:
            kept.append(item)
        if len(kept) == most:
            break
    return kept


def _followed(
    model: Model, composer: KnowledgeComposer, drawn: Sequence[Drawn], items: Sequence[Item]
) -> Iterator[tuple[Item, str]]:
    """(item, why it does not count; empty if it does), asked in chunks."""
    by_name = {one.record.name: one for one in drawn}
    for start in range(0, len(items), CHUNK):
        chunk = list(items[start : start + CHUNK])
        reasons: dict[str, str] = {}
        for number, reason in enumerate(NOT_FOLLOWED):
            left = [item for item in chunk if item.name not in reasons]
            if not left:
                break
            prompts = []
            for item in left:
                record, other = by_name[item.name]
                prompts.append(composer.opened(other) if number == 2 else composer.opened(record, swapped=number == 0))
            wanted = [[item.swapped if number == 0 else item.right] for item in left]
            ranks = candidates(model, prompts, wanted).ranks[:, 0].tolist()
            reasons |= {item.name: reason for item, rank in zip(left, ranks, strict=True) if rank}
        yield from ((item, reasons.get(item.name, "")) for item in chunk)
