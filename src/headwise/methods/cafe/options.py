"""What the evidence detector is asked for; see `evidence` for how it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headwise.runtime.labelled_passages import LabelledPassages
from headwise.runtime.options import check_choice, option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

DOC_POOL = ("sum", "mean")


@dataclass(frozen=True)
class Evidence(LabelledPassages):
    """Evidence score: share of a head's attention to passages that falls on those that answer (CAFE, Peng et al. 2025, arXiv:2505.10063, eq. 1-3).

    Attributes:
        doc_pool: How a passage's tokens are pooled: `sum` (favours long passages) or `mean` (favours short ones); as the heads will be used.
    """

    name: ClassVar[str] = "evidence"
    summary: ClassVar[str] = "Heads whose attention to passages falls on those that answer (CAFE, Peng et al. 2025)."

    doc_pool: str = option("sum", "Over a passage's tokens: sum or mean; take the one that you will use later.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("doc_pool", self.doc_pool, DOC_POOL)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Evidence scores of all query heads, in [0, 1]; see `headwise.find`. Nothing is kept for a resume."""
        from headwise.methods.cafe.evidence import evidence_scores

        table, made = self.table(model, run)
        return evidence_scores(table, self.doc_pool, made)
