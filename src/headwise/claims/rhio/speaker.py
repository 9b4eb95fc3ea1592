"""A model and how it answers questions with documents: greedily, without heads, behind a control token, contrasted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import headwise as hw
from headwise.attention.plan import attached
from headwise.evaluation.decoders import contrastive_decoder
from headwise.heads.progress import Report, silent
from headwise.models.model import Model
from headwise.prompts.control import control_ids, with_control
from headwise.prompts.encoder import PieceEncoder, read_answer
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import stop_ids
from headwise.runtime.batches import greedy_answers

ROWS = 16


class Speaker(NamedTuple):
    """A model and how it is asked.

    Attributes:
        model: The model.
        limit: Tokens of an answer.
        report: Progress.
    """

    model: Model
    limit: int
    report: Report = silent

    @property
    def composer(self) -> GroundedComposer:
        """Of its prompts, as in training."""
        return GroundedComposer(PieceEncoder(self.model.tokenizer))

    @property
    def stop(self) -> Any:
        """Ends of an answer: it is one line."""
        return stop_ids(self.model, False, lines=True)

    def greedy(self, prompts: Sequence[Prompt], without: hw.HeadSet | None = None, mode: str = "zero") -> list[str]:
        """Greedy answers."""
        block = nullcontext() if without is None else hw.ablate(self.model, without, mode, "all")
        said: list[tuple[int, ...]] = []
        with attached(self.model), block:
            for start in range(0, len(prompts), ROWS):
                part = [prompt.ids for prompt in prompts[start : start + ROWS]]
                said += greedy_answers(self.model.hf, part, [self.limit] * len(part), self.stop)
                self.report(len(said), len(prompts), "answers")
        return [read_answer(self.model.tokenizer, ids, self.stop).strip() for ids in said]

    def opened(self, records: Sequence[GroundedRecord], without: hw.HeadSet | None = None, mode: str = "zero") -> list[str]:
        """Greedy answers behind the documents."""
        return self.greedy([self.composer.opened(record) for record in records], without, mode)

    def closed(self, records: Sequence[GroundedRecord]) -> list[str]:
        """Greedy answers without documents."""
        return self.greedy([self.composer.closed(record) for record in records])

    def behind(self, records: Sequence[GroundedRecord], which: int) -> list[str]:
        """Greedy answers behind `[POS]` (0) or `[NEG]` (1)."""
        token, head = control_ids(self.model.tokenizer)[which], self.composer.builder.head
        return self.greedy([with_control(self.composer.opened(record), token, head) for record in records])

    def contrast(self, records: Sequence[GroundedRecord], negative: Any, **rule: Any) -> list[str]:
        """Answers of contrastive decoding."""
        composer = self.composer
        decode = contrastive_decoder(self.model, self.stop, self.limit, negative, composer.builder.head, **rule)
        said = []
        for number, record in enumerate(records, 1):
            said.append(read_answer(self.model.tokenizer, decode(composer.opened(record), composer.closed(record)), self.stop).strip())
            self.report(number, len(records), "contrast")
        return said
