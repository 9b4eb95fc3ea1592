"""What the detectors of the Atlas are asked for; see `run` for how they score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headwise.runtime.knowledge_questions import KnowledgeQuestions
from headwise.runtime.options import check_choice, option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

NORMALIZE = ("none", "logit", "share")
ROWS, POSITIVE = ("all", "last"), ("pair", "token", "none")


@dataclass(frozen=True)
class InContext(KnowledgeQuestions):
    """D score: what a head contributes with a swapped passage minus what it contributes without one (Kahardipraja et al. 2025).

    Attributes:
        normalize: Contributions of a record are divided by nothing (`none`), by the size of the logit (`logit`), or by their sum (`share`).
    """

    name: ClassVar[str] = "in-context"
    summary: ClassVar[str] = "Heads that serve the context more than memory (D score of the Atlas, Kahardipraja et al. 2025)."
    sign: ClassVar[int] = 1

    normalize: str = option(
        "share", "Divide each record's contributions by: none, logit (its size) or share (their sum over all heads)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("normalize", self.normalize, NORMALIZE)

    def find(self, model: Model, run: Run) -> HeadScores:
        """D of all query heads, or -D; see `headwise.find`. Both directions and all ways to normalize continue one another's runs."""
        from headwise.methods.atlas.run import contrast_scores, measure

        return contrast_scores(measure(model, self, ("contrast",), run), self)


@dataclass(frozen=True)
class Parametric(InContext):
    """-D: heads that serve memory more than the context."""

    name: ClassVar[str] = "parametric"
    summary: ClassVar[str] = "Heads that serve memory more than the context (-D of the Atlas, Kahardipraja et al. 2025)."
    sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Task(KnowledgeQuestions):
    """Task relevance: what a head takes from the tokens of the question (Kahardipraja et al. 2025).

    Attributes:
        rows: Query rows that are summed: `all` (the paper), or the `last` one.
        positive: Positive parts of each `pair` of row and token (the paper), of each source `token`, or `none`: signed.
    """

    name: ClassVar[str] = "task"
    summary: ClassVar[str] = "Heads that read what is asked (task relevance of the Atlas, Kahardipraja et al. 2025)."
    spans: ClassVar[str] = "question"

    rows: str = option("all", "Query rows that are summed: all (the paper), or last (only the row that gives the answer).")
    positive: str = option("pair", "Positive parts of each pair of row and token (the paper), of each token, or none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ROWS)
        check_choice("positive", self.positive, POSITIVE)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Task or retrieval relevance of all query heads, in logits; see `headwise.find`."""
        from headwise.methods.atlas.run import measure, source_scores

        return source_scores(measure(model, self, ("sources",), run), self)


@dataclass(frozen=True)
class Retrieval(Task):
    """Retrieval relevance: what a head takes from the answer inside the passage (Kahardipraja et al. 2025)."""

    name: ClassVar[str] = "retrieval"
    summary: ClassVar[str] = (
        "Heads that read the answer in the passage (retrieval relevance of the Atlas, Kahardipraja et al. 2025)."
    )
    spans: ClassVar[str] = "answer"
