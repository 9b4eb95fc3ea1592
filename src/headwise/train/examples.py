"""Questions over passages as token ids to train on: prompt, answer, end, and where the passages lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.models.model import Model, need_tokenizer
from headwise.prompts.answers import answer_ids, passages_of, prompt_of_documents
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.prompts.prompt import Span

WHY = {  # what the counts of `Prepared` say
    "no_answer": "have no answer",
    "no_gold": "have no gold passage",
    "all_gold": "have gold passages only",
    "too_long": "are too long even with their gold passages and a single distractor",
    "shortened": "lost distractors that did not fit",
}


@dataclass(frozen=True)
class TrainExample:
    """One example.

    Attributes:
        ids: Prompt, answer and end of text; the prompt alone where no answer is learnt.
        answer: Where the answer begins; the token in front of it is the last one of the prompt.
        asks: From the question's first word to the end of the prompt.
        passages: Their spans, in the order of the prompt; none where the prompt has no passages.
        gold: For each of them whether it answers the question.
        alone: The question, and then each passage, as texts of their own; empty unless they were asked for.
        name: What messages call it.
    """

    ids: tuple[int, ...]
    answer: int
    asks: Span
    passages: tuple[Span, ...] = ()
    gold: tuple[bool, ...] = ()
    alone: tuple[tuple[int, ...], ...] = ()
    name: str = ""


class Prepared(NamedTuple):
    """Examples that can be trained on.

    Attributes:
        examples: In the order of the data.
        counts: What was left out and why (`no_gold`, `all_gold`, `no_answer`, `too_long`), and of the others how many lost distractors
            (`shortened`), in examples.
    """

    examples: tuple[TrainExample, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class Batch:
    """Examples of one pass.

    They are padded on the right, where causal attention lets no token of an example look, so that no mask is needed.

    Attributes:
        ids: [B, T] int64.
        examples: B of them.
    """

    ids: Tensor
    examples: tuple[TrainExample, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.examples)


def prepared(
    model: Model,
    records: Sequence[RankingExample],
    length: int,
    chat: bool = False,
    seed: int = 0,
    alone: bool = False,
    answers: bool = True,
) -> Prepared:
    """Prompts with the first answer of each record behind them.

    Passages are put into a random order. Where they do not fit, distractors that do not fit behind those before them are left out, before that; gold
    passages stay (as in MuDAF's released code, card 3.4, which leaves out all behind the first that does not fit).

    Args:
        model: With its tokenizer, which has an end-of-text token.
        records: Questions with passages, gold and answers.
        length: Longest example in tokens, the answer included.
        chat: Put the prompt into the model's chat template.
        seed: Of the order of the passages.
        alone: Give question and passages as texts of their own, too.
        answers: Put answers behind the prompts; without them records need none, for losses on heads alone.

    Returns:
        What can be used, and counts of the rest.

    Raises:
        HeadwiseError: No record can be used, or the tokenizer has no end-of-text token.
    """
    encoder = PieceEncoder(need_tokenizer(model, "training").tokenizer)
    maker = _Maker(encoder, answer_end(encoder, chat) if answers else None, length, chat, alone)
    counts: Counter[str] = Counter()
    found = []
    for number, record in enumerate(records):
        why = _unusable(record, answers)
        made = None if why else maker.fitted(record, np.random.default_rng([seed, 81, number]))
        if made is None:
            counts[why or "too_long"] += 1
            continue
        counts["shortened"] += len(made.passages) < len(record.passages)
        found.append(made)
    if not found:
        told = ", ".join(f"{count} {WHY[name]}" for name, count in counts.items() if count)
        raise HeadwiseError(f"none of {len(records)} examples can be trained on: {told}")
    return Prepared(tuple(found), dict(counts))


def answer_end(encoder: PieceEncoder, chat: bool) -> tuple[int, ...]:
    """What follows an answer: the end-of-text token, behind a line break where there is no chat template.

    Answers without a chat template are read up to the line break (`stop_ids`), and base models know it as the end of an answer. Some have never seen
    their end-of-text token, and an adapter of attention can hardly tell it from other tokens that no text holds.

    Raises:
        HeadwiseError: The tokenizer has no end-of-text token.
    """
    end = getattr(encoder.tokenizer, "eos_token_id", None)
    if not isinstance(end, int):
        raise HeadwiseError("the tokenizer has no end-of-text token, so no answer could end")
    return (end,) if chat else (*encoder.encode("\n"), end)


def _unusable(record: RankingExample, answers: bool) -> str:
    if answers and not record.answers:
        return "no_answer"
    if not record.gold:
        return "no_gold"
    return "all_gold" if len(record.gold) == len(record.passages) else ""


class _Maker(NamedTuple):
    """How examples are made of records."""

    encoder: PieceEncoder
    end: tuple[int, ...] | None  # None: no answers
    length: int
    chat: bool
    alone: bool

    def fitted(self, record: RankingExample, rng: np.random.Generator) -> TrainExample | None:
        """The example with the distractors that fit; None where not even one does beside the gold passages."""
        keys = rng.random(len(record.passages))  # drawn once, so that leaving one out does not change the order of the others
        every = range(len(record.passages))
        if (whole := self._ordered(record, every, keys)) is not None:
            return whole
        kept, found = sorted(record.gold), None
        for spare in (i for i in every if i not in record.gold):
            if (more := self._ordered(record, [*kept, spare], keys)) is not None:
                kept, found = [*kept, spare], more
        return found

    def _ordered(self, record: RankingExample, chosen: Sequence[int], keys: NDArray[np.float64]) -> TrainExample | None:
        """The example of some passages in the order of their keys; None where it is too long."""
        order = sorted(chosen, key=lambda i: keys[i])
        made = self._example(record, [record.passages[i] for i in order])
        if len(made.ids) > self.length:
            return None
        alone = self._alone(record, order) if self.alone else ()
        return replace(made, gold=tuple(i in record.gold for i in order), alone=alone)

    def _example(self, record: RankingExample, passages: Sequence[Passage]) -> TrainExample:
        try:
            prompt = prompt_of_documents(self.encoder, record.query, passages, self.chat)
            answer = () if self.end is None else (*answer_ids(self.encoder, prompt, record.answers[0]), *self.end)
        except PromptError as error:
            raise PromptError(f"{record.name or record.query!r}: {error}") from error
        count = len(prompt.ids)
        asks = Span(prompt.span("query").start, count)
        spans = tuple(passages_of(prompt).values())
        return TrainExample((*prompt.ids, *answer), count, asks, spans, name=record.name)

    def _alone(self, record: RankingExample, order: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Texts without a frame of a chat, as MuDAF's released code encodes them."""
        composer = PassageComposer(self.encoder)
        texts = [composer.query(record.query).ids, *(composer.passage(record.passages[i], 1) for i in order)]
        return tuple((*self.encoder.bos, *ids) for ids in texts)


def collate(examples: Sequence[TrainExample]) -> Batch:
    """Examples as one batch."""
    return Batch(padded([one.ids for one in examples]), tuple(examples))


def padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """Texts [B, T], each filled up with its last token."""
    width = max(map(len, texts))
    return torch.tensor([[*text, *[text[-1]] * (width - len(text))] for text in texts])
