"""What the copy detector is asked for; see `run` for how it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headwise.runtime.needle_runs import NeedleQuestions
from headwise.runtime.options import COPY_RULES, check_choice, option

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Run

MATCHES = ("token", "position")


@dataclass(frozen=True)
class Copy(NeedleQuestions):
    """Copy score: heads that copy a needle token by token (Wu et al. 2024, arXiv:2404.15574, sec. 2).

    Attributes:
        rule: `set` (distinct needle tokens copied, as a share of them) or `multiset` (copying steps, as the released code counts).
        match: `token` (the token that was said, anywhere in the needle) or `position` (at the aligned place only).
        until_stable: Stop once the strongest heads of two halves of the groups agree.
    """

    name: ClassVar[str] = "copy"
    summary: ClassVar[str] = "Heads that copy the answer of a needle question token by token (Wu et al. 2024)."

    rule: str = option("set", "How copies are counted: set (share of needle tokens copied) or multiset (as in the released code).")
    match: str = option("token", "What counts as a copy: token, or position (only the aligned needle position).")
    until_stable: bool = option(False, "Stop when two halves of the runs agree on the top 16.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, COPY_RULES)
        check_choice("match", self.match, MATCHES)

    def find(self, model: Model, run: Run) -> HeadScores:
        """Copy scores of all query heads, in [0, 1]; see `headwise.find`."""
        from headwise.methods.copy.run import copy_scores, describe_run

        task = self.task(model)
        return copy_scores(model, task, self, run.open(describe_run(model, task, self)), run.report)
