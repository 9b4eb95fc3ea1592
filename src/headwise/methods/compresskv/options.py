"""What the semantic detector is asked for; see `semantic` for how it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headwise.runtime.needle_runs import NeedleQuestions
from headwise.runtime.options import check_choice, check_least, option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

EXTREMES = ("keep", "drop")


@dataclass(frozen=True)
class Semantic(NeedleQuestions):
    """Semantic score: heads that look at the answer while the model says it (Lin et al. 2025, CompressKV, arXiv:2508.02401, eq. 5).

    Attributes:
        extremes: `drop` leaves the depths 0 and 1 out, where heads that look at the first or the last tokens meet the needle anyway.
        min_runs: With fewer solved runs there is no ranking. It decides nothing else, so it may be lowered for a run that is on disk.
    """

    name: ClassVar[str] = "semantic"
    summary: ClassVar[str] = "Heads that look at the answer in a needle while the model says it (CompressKV, Lin et al. 2025)."

    extremes: str = option("keep", "Depths 0 and 1: keep or drop them.")
    min_runs: int = option(30, "Fewest solved runs that make a ranking.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("extremes", self.extremes, EXTREMES)
        check_least(1, min_runs=self.min_runs)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Semantic scores of all query heads, from 0 to the steps of an answer; see `headwise.find`."""
        from headwise.methods.compresskv.semantic import describe_run, semantic_scores

        task = self.task(model)
        return semantic_scores(model, task, self, run.open(describe_run(model, task, self)), run.report)
