"""What the proxy detector is asked for; see `proxy` for how it scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.runtime.options import COPY_RULES, check_choice, check_least, check_seed, option, path_or, set_option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

WRONG = ("keep", "skip")
SHORT = 1024  # tokens; below it, keys and values are shorter than the paper's, so that several pairs fit


class Sizes(NamedTuple):
    """Sizes of a proxy prompt.

    Attributes:
        length: Tokens of prompt and answer.
        key_length: Characters of a key.
        value_tokens: Tokens of the longest value.
    """

    length: int
    key_length: int
    value_tokens: int


PAPER, SMALL = Sizes(4096, 32, 30), Sizes(SHORT - 1, 8, 12)


@dataclass(frozen=True)
class Proxy:
    """Proxy score: heads that copy the value of a key in a JSON object (AttentionInfluence, Hua et al. 2025, arXiv:2505.07293, eq. 4).

    Attributes:
        length: Tokens of prompt and answer together, at most; None: the paper's 4,096, or what the model holds.
        samples: Number of prompts.
        shots: Demonstrations in front of the question.
        pairs: Pairs in the object; None: as many as fit.
        key_length: Characters of a key; None: 32, or 8 in prompts below 1,024 tokens.
        value_tokens: Longest value; None: 30, or 12 in prompts below 1,024 tokens.
        haystack: Folder of texts whose sentences are values, or the texts themselves; None takes three public-domain books.
        rule: `set` (distinct tokens of the value copied, by position) or `multiset` (copying steps), both as a share of the value.
        wrong: What becomes of samples that the model does not answer itself: `keep` or `skip`.
        min_accuracy: Share of samples answered in full, below which heads are refused.
        seed: Of keys, values, places and what is asked.
    """

    name: ClassVar[str] = "proxy"
    summary: ClassVar[str] = "Heads that copy the value of a key in a JSON object (AttentionInfluence, Hua et al. 2025)."

    length: int | None = option(None, "Tokens of prompt and answer together.", "4096, or what the model holds")
    samples: int = option(800, "Number of prompts.")
    shots: int = option(3, "Demonstrations in front of the question.")
    pairs: int | None = option(None, "Pairs in the JSON object.", "as many as fit")
    key_length: int | None = option(None, "Characters of a key.", "32, 8 in prompts below 1024 tokens")
    value_tokens: int | None = option(None, "Longest value in tokens.", "30, 12 in prompts below 1024 tokens")
    haystack: str | Path | Sequence[str] | None = option(
        None, "Folder of .txt/.md files (.gz too) whose sentences are values.", "three public-domain books"
    )
    rule: str = option("set", "set (share of value tokens copied) or multiset (copying steps).")
    wrong: str = option("keep", "Samples that the model answers wrong: keep or skip.")
    min_accuracy: float = option(0.5, "Share of questions that the model must answer.")
    seed: int = option(0, "Seed of keys, values, places and questions.")

    def __post_init__(self) -> None:
        set_option(self, "haystack", path_or(self.haystack))
        try:
            check_least(1, length=self.length, samples=self.samples, value_tokens=self.value_tokens)
            check_least(0, shots=self.shots)
            check_least(4, key_length=self.key_length)
        except HeadwiseError as error:
            raise PromptError(str(error)) from error
        if self.pairs is not None and self.pairs <= self.shots:
            raise PromptError(
                f"{self.pairs} pairs are too few for {self.shots} demonstrations and a question; give at least {self.shots + 1}"
            )
        check_seed(self.seed)
        check_choice("rule", self.rule, COPY_RULES)
        check_choice("wrong", self.wrong, WRONG)
        if not 0 <= self.min_accuracy <= 1:
            raise HeadwiseError(f"min_accuracy must lie in [0, 1]; got {self.min_accuracy:g}")

    def sizes(self, positions: int | None = None) -> Sizes:
        """Sizes of the prompts for a model with so many positions (None: no limit)."""
        length = self.length or min(PAPER.length, positions or PAPER.length)
        usual = SMALL if length < SHORT else PAPER
        return Sizes(length, self.key_length or usual.key_length, self.value_tokens or usual.value_tokens)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Proxy scores of all query heads, in [0, 1]; see `headwise.find`."""
        from headwise.methods.influence.prompts import ProxyPrompts
        from headwise.methods.influence.proxy import describe_run, proxy_scores
        from headwise.prompts.encoder import PieceEncoder
        from headwise.runtime.needle_runs import haystack_texts

        sized = replace(self, length=self.sizes(model.positions).length)
        prompts = ProxyPrompts(haystack_texts(self.haystack), PieceEncoder(model.tokenizer), sized)
        return proxy_scores(model, prompts, sized, run.open(describe_run(model, prompts, sized)), run.report)
