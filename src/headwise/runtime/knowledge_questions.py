"""Questions that can be answered from a passage or from memory: the options of whatever asks them; see `knowledge_asked` for how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.heads.errors import HeadwiseError
from headwise.runtime.options import check_choice, check_least, check_seed, option, path_or, set_option

if TYPE_CHECKING:
    from headwise.prompts.knowledge_record import KnowledgeRecord

FOLLOWED = ("first", "top5", "top10", "answer", "any")
WORDINGS = ("plain", "instructed", "cloze", "bare")
RULE_HELP = (
    "How gradients are altered: gradient, gim, cp_lrp or attnlrp. The last two (layer-wise relevance propagation) may be covered by patents "
    "(US 12,061,966; EP 3 271 863); no patent is known to us for the others."
)


@dataclass(frozen=True)
class KnowledgeQuestions:
    """Questions with passages, and which of them count.

    Attributes:
        data: A file that `read_knowledge` reads, or records. Passages without a swapped answer are swapped by the seed. Needed.
        layout: Of the file, see `read_knowledge`.
        make_passages: Records without a passage get one of so many completed sentences, see `fact_passages`; 0: they are left out.
        rule: Rule of attribution, see `headwise.attribute`.
        followed: When the model has given an answer, that is when a record counts: `first` (its first token is the most probable one),
            `top5`, `top10` (the first token is among so many), `answer` (greedy decoding gives the whole answer), `any` (always).
        records: Stop after so many records that count; None: all.
        min_records: Refuse a result from fewer of them.
        wording: Words around passage and question, see `WORDINGS` of `headwise.prompts.knowledge`.
        shots: So many records of the file stand in front of each question as solved examples, and are not asked.
        chat: Wrap the prompt in the model's chat template.
        chat_template_args: Variables for it, as a mapping or JSON. Thinking is off unless they switch it on.
        seed: Of the order of the records, the examples and the swaps.
    """

    data: str | Path | Sequence[KnowledgeRecord] | None = option(
        None,
        "Questions with passages: NQ-open oracle, NQ-Swap, PopQA, or JSON lines with question, answers, passage. Needed.",
    )
    layout: str = option("auto", "Layout of the file: auto, nq, nq-swap, popqa, relations, known-facts or own.")
    make_passages: int = option(
        0, "Give records without a passage one of this many completed sentences (relations, known facts)."
    )
    rule: str = option("gim", RULE_HELP)
    followed: str = option(
        "first", "A record counts if its answer is given: first (token on top), top5, top10, answer (all of it), any (always)."
    )
    records: int | None = option(256, "Stop after this many records that count.")
    min_records: int = option(50, "Refuse a result from fewer records.")
    wording: str = option("plain", "Wording around passage and question: plain, instructed, cloze or bare.")
    shots: int = option(0, "Solved examples in front of each question.")
    chat: bool = option(False, "Wrap the prompt in the model's chat template.")
    chat_template_args: str | Mapping[str, Any] | None = option(None, "Variables for the chat template, as JSON.")
    seed: int = option(0, "Seed of the order of records, of the examples and of the swapped answers.")

    def __post_init__(self) -> None:
        from headwise.attention.rules import RULES
        from headwise.prompts.prompt import chat_arguments

        set_option(self, "data", path_or(self.data))
        if self.data is None:
            raise HeadwiseError(
                "no questions were given; give --data FILE, for example an NQ-open oracle file (docs/methods/in-context-atlas.md)"
            )
        check_choice("rule", self.rule, RULES)
        check_choice("followed", self.followed, FOLLOWED)
        check_choice("wording", self.wording, WORDINGS)
        check_least(1, records=self.records, min_records=self.min_records)
        check_least(0, shots=self.shots, make_passages=self.make_passages)
        check_seed(self.seed)
        chat_arguments(self.chat_template_args)
        if self.records is not None and self.records < self.min_records:
            raise HeadwiseError(
                f"{self.records} records at most cannot be {self.min_records} at least; raise records or lower min_records"
            )
