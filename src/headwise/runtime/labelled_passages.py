"""Labelled queries over passages: the options of a detector that reads them, and the table of attention that its scores come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise.runtime.options import SPANS, check_choice, check_least, check_seed, option, path_or, set_option

if TYPE_CHECKING:
    from headwise.models.model import Model
    from headwise.prompts.passages import Passage, PassageComposer, RankingExample
    from headwise.runtime.detector import Run
    from headwise.runtime.passage_table import PassageTable
    from headwise.runtime.passages import Scoring

TEXTS, PASSAGES = 64, 6


class Labelled(NamedTuple):
    """Examples that were read.

    Attributes:
        examples: In the order of the file.
        cut: How many of their passages were shortened.
        source: What results call them.
    """

    examples: Sequence[RankingExample]
    cut: int
    source: str


@dataclass(frozen=True)
class LabelledPassages:
    """Queries with passages of which some are gold, and how attention to them is measured.

    Attributes:
        data: JSON lines with query, passages and gold; or `RankingExample`s; None: 64 needle questions over passages of novels.
        span: Rows that are averaged: `official` (from the instruction behind the passages to the end of the prompt, as the released code
            has it), `query` (its own words), or one row alone: `last` (the last token of the prompt) or `query_last` (of the query's words).
        max_passage_words: Cut longer passages to so many words, and count them; None cuts none.
        wording: Words around passages and query: `plain` or `instructed`.
        chat: Wrap the prompt in the model's chat template.
        chat_template_args: Variables for it, as a mapping or JSON. Thinking is off unless they switch it on.
        seed: Of the order of each example's passages, and of the bundled questions.
    """

    data: str | Path | Sequence[RankingExample] | None = option(
        None, "JSON lines with query, passages and gold.", "64 needle questions over passages of novels"
    )
    span: str = option(
        "official",
        "Rows to average: all from the instruction behind the passages on (official), the query's words (query), or one token: last, query_last.",
    )
    max_passage_words: int | None = option(None, "Cut longer passages to this many words.", "none is cut")
    wording: str = option("plain", "Wording around passages: plain or instructed.")
    chat: bool = option(False, "Wrap the prompt in the model's chat template.")
    chat_template_args: str | Mapping[str, Any] | None = option(None, "Variables for the chat template, as JSON.")
    seed: int = option(0, "Seed of the order of passages and of the bundled questions.")

    def __post_init__(self) -> None:
        from headwise.prompts.prompt import chat_arguments

        set_option(self, "data", path_or(self.data))
        check_choice("span", self.span, SPANS)
        check_least(1, max_passage_words=self.max_passage_words)
        check_seed(self.seed)
        chat_arguments(self.chat_template_args)

    @property
    def scoring(self) -> Scoring:
        """How attention becomes one value per passage."""
        from headwise.runtime.passages import Scoring

        return Scoring(self.span)

    def read(self) -> Labelled:
        """The examples. Raises `PromptError` for a file that cannot be read."""
        from headwise.prompts.ranking_data import needle_examples, read_ranking_examples

        if self.data is None:
            return Labelled(needle_examples(TEXTS, PASSAGES, self.seed), 0, "bundled needles among passages of novels")
        if isinstance(self.data, str | Path):
            examples: Sequence[RankingExample] = read_ranking_examples(self.data)
            source = Path(self.data).name
        else:
            examples, source = self.data, "examples given in Python"
        if self.max_passage_words is None:
            return Labelled(examples, 0, source)
        shorter = [tuple(shortened(p, self.max_passage_words) for p in example.passages) for example in examples]
        cut = sum(a is not b for old, new in zip(examples, shorter, strict=True) for a, b in zip(old.passages, new, strict=True))
        return Labelled([replace(e, passages=p) for e, p in zip(examples, shorter, strict=True)], cut, source)

    def composer(self, model: Model) -> PassageComposer:
        """What builds the prompts. Raises `PromptError` for an unknown wording, or a chat template that cannot be used."""
        from headwise.prompts.encoder import PieceEncoder
        from headwise.prompts.passages import PassageComposer
        from headwise.prompts.prompt import chat_arguments

        return PassageComposer(PieceEncoder(model.tokenizer), self.wording, self.chat, chat_arguments(self.chat_template_args))

    def table(self, model: Model, run: Run) -> tuple[PassageTable, dict[str, Any]]:
        """What every head pays to every passage of the examples.

        Args:
            model: With its tokenizer.
            run: Where progress is told.

        Returns:
            (the table, how it was made as plain data).

        Raises:
            PromptError: A file that cannot be read, or passages that do not fit the model.
            HeadwiseError: No query has both a gold passage and another one, or no layer of the model sees the whole text.
        """
        from headwise.models.model import describe_model
        from headwise.runtime.passage_table import measure_passages

        labelled = self.read()
        composer = self.composer(model)
        table = measure_passages(model.hf, model, composer, labelled.examples, self.scoring, self.seed, run.report)
        made = {"data": labelled.source, "wording": self.wording, "chat": self.chat} | composer.builder.describe()
        shortened = {"max_passage_words": self.max_passage_words, "passages_cut": labelled.cut}
        return table, describe_model(model) | made | shortened


def shortened(passage: Passage, most: int) -> Passage:
    """A passage of at most `most` words.

    Args:
        passage: Its title does not count, and stays.
        most: Words, split at white space.

    Returns:
        The same object if it is short enough; otherwise a copy with single spaces between words.
    """
    words = passage.text.split()
    return passage if len(words) <= most else passage._replace(text=" ".join(words[:most]))
