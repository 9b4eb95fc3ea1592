"""What the query detector is asked for; see `run` for how it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headwise.heads.errors import HeadwiseError
from headwise.runtime.labelled_passages import LabelledPassages
from headwise.runtime.options import check_choice, option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run
    from headwise.runtime.passages import Scoring

RULES = ("mass", "calibrated_mass", "ndcg", "mrr", "contrastive")


@dataclass(frozen=True)
class Query(LabelledPassages):
    """Query score: heads whose attention from a question falls on the passages that answer it (QRHead, Zhang et al. 2025, arXiv:2506.09944).

    Attributes:
        rule: `mass` (the paper's eq. 2-4), `calibrated_mass` and `ndcg` (its released code), `mrr` (ours), `contrastive` (Tran et al. 2025,
            arXiv:2510.02219).
        temperature: Of the contrastive rule, on shares of a head's total.
        trim: Leave out tokens of a passage more than so many standard deviations below its mean, head by head, as the released detection
            does with 2. Acts on calibrated values.
        strict: Leave out a token exactly at that bound too, as the released code does, so that a passage of one token counts 0.
    """

    name: ClassVar[str] = "query"
    summary: ClassVar[str] = "Heads that look from a question to the passages that answer it (QRHead, Zhang et al. 2025)."

    rule: str = option("calibrated_mass", "How heads are scored: mass, calibrated_mass, ndcg, mrr or contrastive.")
    temperature: float = option(0.1, "Temperature of the contrastive rule.")
    trim: float | None = option(
        None, "Leave out tokens this many standard deviations below their passage's mean (released code: 2).", "none is left out"
    )
    strict: bool = option(False, "With --trim: leave out tokens exactly at the bound too, as the released code does.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, RULES)
        if not self.temperature > 0:
            raise HeadwiseError(f"the temperature must be above 0; got {self.temperature:g}")
        if self.strict and self.trim is None:
            raise HeadwiseError("strict says how tokens are trimmed; give trim too (released code: 2)")
        if self.trim is not None and not self.trim > 0:
            raise HeadwiseError(f"trim must be above 0 standard deviations; got {self.trim:g}")
        if self.trim is not None and self.rule == "mass":
            raise HeadwiseError("trim acts on calibrated values, which the rule mass does not read; drop trim or choose another rule")

    @property
    def scoring(self) -> Scoring:
        """How attention becomes one value per passage."""
        from headwise.runtime.passages import Scoring

        return Scoring(self.span, self.trim, strict=self.strict)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Query scores of all query heads; see `headwise.find`. Nothing is kept for a resume."""
        from headwise.methods.query.run import query_scores

        table, made = self.table(model, run)
        return query_scores(table, self.rule, self.temperature, made)
