"""How a probe is fitted; see `fit` for what the kinds of negatives are."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.heads.errors import HeadwiseError
from headwise.runtime.options import check_choice, check_least, check_seed, option

NEGATIVES = ("paired", "closed", "unrelated")
MEMORIES = ("right", "said")


@dataclass(frozen=True)
class FitOptions:
    """How a probe is fitted. Raises `HeadwiseError` for a value out of range.

    Attributes:
        negatives: What counts as remembered: one of `NEGATIVES`.
        memory: For `paired`: the token of the `right` answer (the paper's), or of what the model `said` without a passage.
        among: Ranks that the token of the answer to be read may have, and for `paired` that of the remembered one, too.
        penalty: Of the ridge regression, see `headwise.stats.probes.ridge`.
        wording: Of the prompts, see `KnowledgeComposer`.
        shots: Solved examples in front, those with the shortest passages.
        records: Use at most so many records, drawn with the seed; None: all.
        seed: Of swapped answers, draw, split and intervals.
    """

    negatives: str = option(
        "closed",
        "What counts as remembered: paired (the right answer beside a swapped passage, the paper's), closed (what the model says without a "
        "passage), or unrelated (what it says beside the passage of another question).",
    )
    memory: str = option("right", "For paired: the right answer's token, or what the model said without a passage.")
    among: int = option(10, "An answer counts if its first token is among so many most likely ones.")
    penalty: float = option(1e-3, "Of the ridge regression.")
    wording: str = option("plain", "Words around passages and questions: plain, instructed, cloze or bare.")
    shots: int = option(3, "Solved examples in front, so that a small model answers in a few words.")
    records: int | None = option(None, "Use at most so many questions, drawn with the seed.", "all")
    seed: int = option(0, "Of swapped answers, draw, split and intervals.")

    def __post_init__(self) -> None:
        from headwise.heads.plain import checked_number  # imports numpy

        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("memory", self.memory, MEMORIES)
        check_least(1, among=self.among, records=self.records)
        check_least(0, shots=self.shots)
        check_seed(self.seed)
        if not checked_number(self.penalty, "the penalty") > 0:
            raise HeadwiseError(f"the penalty must be above 0; got {self.penalty:g}")
