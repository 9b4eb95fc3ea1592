"""What the doubt detector is asked for; see `run` for how it scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from headwise.heads.errors import HeadwiseError
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.options import check_choice, check_least, option, path_or, set_option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

KNOCKED = ("zero", "uniform")


@dataclass(frozen=True)
class Doubt(DoubtQuestions):
    """Heads that make a model take back a right answer, and heads that make it hold on (Singha Roy et al. 2025, arXiv:2510.22866).

    Attributes:
        score: `knock_out` (how much the margin of keeping the answer rises without the head, in nats; below 0: the head holds on),
            `misleading` (case1 - case3), `doubt` (attention to words of doubt), `leave`, `keep` (attention to the options), or an expression over
            `case1` ... `case4` and these, such as `case1 | case2`.
        threshold: Makes the tables of an expression sets, see `evaluate`.
        knock_outs: So many dialogues are run without every single head; 0: none, which is far cheaper. Drawn evenly over the challenges.
        knocked: What the single heads get: `zero` (output 0) or `uniform` (query 0).
        top_k: So many of a head's most attended positions count as looked at.
        sink: Let the first position count among them.
        min_items: The cases are refused with fewer flipped dialogues, and with fewer that held.
        retrieval: Head file of retrieval heads, to leave out those that reach `retrieval_from`.
        retrieval_from: Score from which a head counts as a retrieval head (0.5 in the paper).
    """

    name: ClassVar[str] = "doubt"
    summary: ClassVar[str] = "Heads that make a model take back right answers when it is challenged (Singha Roy et al. 2025)."

    score: str = option(
        "knock_out",
        "knock_out, misleading, doubt, leave, keep, or an expression over case1 ... case4 and these, e.g. 'case1 | case2'.",
    )
    threshold: float | None = option(
        None, "Make the tables of an expression sets of the heads that reach this.", "compare values"
    )
    knock_outs: int = option(24, "Dialogues that are run without every single head; 0 for none.")
    knocked: str = option("zero", "What a single head gets in them: zero (output 0) or uniform (query 0).")
    top_k: int = option(5, "So many of a head's most attended positions count as looked at.")
    sink: bool = option(False, "Let the first position count among them.")
    min_items: int = option(20, "Refuse the four cases with fewer flipped dialogues, or with fewer that held.")
    retrieval: str | Path | None = option(None, "Head file of retrieval heads, which are then left out.")
    retrieval_from: float = option(0.5, "Score from which a head counts as a retrieval head.")

    def __post_init__(self) -> None:
        super().__post_init__()
        set_option(self, "retrieval", path_or(self.retrieval))
        check_choice("knocked", self.knocked, KNOCKED)
        check_least(1, top_k=self.top_k, min_items=self.min_items)
        check_least(0, knock_outs=self.knock_outs)
        if not self.score.strip():
            raise HeadwiseError("the score is empty; use knock_out, misleading, doubt, leave, keep or an expression")
        if self.threshold is not None and not self.threshold > 0:
            raise HeadwiseError(f"threshold must be above 0, which heads outside of a set get; got {self.threshold:g}")
        self._check_score()
        if "knock_out" in self.score and not self.knock_outs:
            raise HeadwiseError("the score knock_out needs --knock-outs of at least 1")

    def _check_score(self) -> None:
        import numpy as np

        from headwise.methods.doubt.formula import TABLES
        from headwise.stats.expressions import evaluate

        evaluate(self.score, dict.fromkeys(TABLES, np.zeros((1, 1))), self.threshold)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Doubt scores of all query heads; see `headwise.find`."""
        from headwise.methods.doubt.run import doubt_scores

        return doubt_scores(model, self, run)
