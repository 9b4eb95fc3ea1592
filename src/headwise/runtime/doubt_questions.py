"""Questions whose answers are challenged: the options of whatever asks them; see `doubt_asked` for how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.heads.errors import HeadwiseError
from headwise.runtime.knowledge_questions import WORDINGS
from headwise.runtime.options import check_choice, check_least, check_seed, option, path_or, set_option, whole_numbers

if TYPE_CHECKING:
    from headwise.prompts.knowledge_record import KnowledgeRecord

FORMS = ("words", "yes-no")
PARTS = ("detect", "select", "test")


@dataclass(frozen=True)
class DoubtQuestions:
    """Questions, and how their answers are challenged (Singha Roy et al. 2025, arXiv:2510.22866; FlipFlop, Laban et al. 2023).

    Attributes:
        data: A file of questions that `read_knowledge` reads, or records; None: the bundled needles in bundled novels.
        layout: Of the file, see `read_knowledge`.
        passages: Show the passage of each record in front of its question; records without one are dropped. Not for needles.
        lengths: Of needle contexts in tokens.
        depths: Number of evenly spaced depths of a needle.
        form: Of the reply: in its own `words` (FlipFlop), or `yes-no` (the paper): does the model stand by its answer?
        challenges: Names, separated by commas; None: all that go with the form.
        wordings: A file of challenges of your own, see `read_wordings`.
        part: Which questions, and which wordings of the challenges: `detect`, `select`, `test`, or `all` (all questions, in the wordings of
            `test`). A question lies in one part only, whatever file and seed.
        items: At most so many questions.
        wording: Words around question and passage, see `WORDINGS` of `headwise.prompts.knowledge`.
        chat: Use the model's chat template.
        chat_template_args: Variables for it, as a mapping or JSON.
        slot: How a reply in words is opened where its soft margin is measured; empty: not at all.
        max_new_tokens: Longest answer in tokens.
        gate: A challenge counts where at least this share of right answers is taken back, and not all are.
        seed: Of wrong answers, the order of questions and that of options.
    """

    data: str | Path | Sequence[KnowledgeRecord] | None = option(
        None,
        "Questions: NQ-open oracle, PopQA, known facts, relations, or JSON lines with question, answers and, if wanted, passage and wrong.",
        "the bundled needles",
    )
    layout: str = option("auto", "Layout of the file: auto, nq, nq-swap, popqa, relations, known-facts or own.")
    passages: bool = option(False, "Show each question behind its passage.")
    lengths: int | Sequence[int] | None = option(None, "Context lengths of needle questions in tokens.", "512")
    depths: int = option(3, "Number of evenly spaced depths of needles.")
    form: str = option("words", "Form of the reply to a challenge: words (a second answer), or yes-no (do you stand by it?).")
    challenges: str | None = option(None, "Challenges by name, e.g. sure,wrong.", "all that go with the form")
    wordings: str | Path | None = option(None, "JSON file with challenges of your own.", "ours, in English")
    part: str = option("detect", "Questions and wordings: detect, select, test (no question lies in two of them), or all.")
    items: int = option(100, "At most this many questions.")
    wording: str = option("plain", "Wording around passage and question: plain, instructed, cloze or bare.")
    chat: bool = option(False, "Use the model's chat template.")
    chat_template_args: str | Mapping[str, Any] | None = option(None, "Variables for the chat template, as JSON.")
    slot: str = option("The answer is", "How a reply in words is opened where its soft margin is measured.")
    max_new_tokens: int = option(24, "Longest answer in tokens.")
    gate: float = option(0.15, "A challenge counts where at least this share of right answers is taken back.")
    seed: int = option(0, "Seed of wrong answers, of the order of questions and of options.")

    def __post_init__(self) -> None:
        from headwise.prompts.prompt import chat_arguments

        set_option(self, "data", path_or(self.data))
        set_option(self, "wordings", path_or(self.wordings))
        set_option(self, "lengths", whole_numbers("lengths", self.lengths) or (512,))
        for name, known in (("form", FORMS), ("part", (*PARTS, "all")), ("wording", WORDINGS)):
            check_choice(name, getattr(self, name), known)
        check_least(1, depths=self.depths, items=self.items, max_new_tokens=self.max_new_tokens)
        check_seed(self.seed)
        chat_arguments(self.chat_template_args)
        if not 0 <= self.gate < 1:
            raise HeadwiseError(f"gate must lie in [0, 1); got {self.gate:g}")
        if self.passages and self.data is None:
            raise HeadwiseError("needles stand in a haystack, so passages go with --data FILE only")
        if self.challenges is not None and not self.names:
            raise HeadwiseError("--challenges names none; give names separated by commas, or leave it out for all")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the wanted challenges; empty for all."""
        return tuple(dict.fromkeys(name.strip() for name in (self.challenges or "").split(",") if name.strip()))
