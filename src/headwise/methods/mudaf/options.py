"""What the MDQA detector is asked for; see `run` for how it scores."""

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

RULES = ("f1", "em", "precision", "recall", "ap")
NORMALIZE = ("none", "share")


@dataclass(frozen=True)
class Mdqa(LabelledPassages):
    """MDQA score: how well the attention of the last prompt token picks the gold passages (MuDAF, Liu et al. 2025, arXiv:2502.13963).

    Attributes:
        span: As in `LabelledPassages`; here the `last` token of the prompt alone unless another is asked for.
        rule: What ranks the heads: `f1`, `em`, `precision` or `recall` of the passages whose attention mass is above `tau`, or `ap`, the average
            precision of all passages by mass, which needs no threshold. All five are tables of the scores.
        tau: Mass above which a passage is picked, at least 0 and below 1.
        normalize: `none`: masses as they are, as in the released code. `share`: divided by the mass on all passages together, so that what a head
            leaves on the first token does not count.
    """

    name: ClassVar[str] = "mdqa"
    summary: ClassVar[str] = "Heads whose attention at the last prompt token picks the gold passages (MuDAF, Liu et al. 2025)."

    span: str = option(
        "last", "Rows to average: one token (last: of the prompt, query_last: of the query's words), or the query's words (query), or official."
    )
    rule: str = option("f1", "What ranks the heads: f1, em, precision, recall (of passages above --tau), or ap (no threshold).")
    tau: float = option(0.3, "Attention mass above which a passage is picked.")
    normalize: str = option("none", "Masses as they are (none), or divided by the mass on all passages (share).")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, RULES)
        check_choice("normalize", self.normalize, NORMALIZE)
        if not 0 <= self.tau < 1:
            raise HeadwiseError(f"tau is an attention mass, at least 0 and below 1; got {self.tau:g}")

    def find(self, model: Model, run: Run) -> HeadScores:
        """MDQA scores of all query heads, in [0, 1]; see `headwise.find`. Nothing is kept for a resume."""
        from headwise.methods.mudaf.run import mdqa_scores

        table, made = self.table(model, run)
        if self.span == "last":  # behind a chat template this is a token of the template, the same for all queries
            composer = self.composer(model)
            made["token_read"] = composer.builder.encoder.decode(composer.query("any").ids[-1:])
        return mdqa_scores(table, self.rule, self.tau, self.normalize, made)
