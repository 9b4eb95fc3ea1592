"""How unfaithful answers are made and chosen."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_number
from headwise.runtime.contrast import check_draw
from headwise.runtime.options import check_least

ANSWERING = ("max_new_tokens", "temperature", "top_p", "seed")  # options that decide the answers; the others choose among them
MATCHED = {"both": ("tokens", "loss"), "length": ("tokens",), "loss": ("loss",), "none": ()}


@dataclass(frozen=True)
class UnfaithfulOptions:
    """Options of `unfaithful_pairs`; the paper gives none of these filters, all numbers are ours.

    Attributes:
        max_new_tokens: Longest answer in tokens; one that has not ended by then is truncated, and dropped.
        temperature: 0: greedy. Else tokens are drawn.
        top_p: See `contrastive_generate`.
        least_distinct: Answers with a smaller share of distinct word triples are repetitive, and dropped; in [0, 1].
        most_support: Answers with at least this support by their documents are faithful all the same, and dropped; in (0, 1].
        match: In what kept answers must be like the references: `both`, `length`, `loss` or `none`.
        central: Share of the references, in (0, 1], whose lengths and losses are the range that an answer must lie in.
        least_gap: Smallest difference, in [0, 1], between the mean support of references and of unfaithful answers.
        seed: Of draws and swaps.

    Raises:
        HeadwiseError: A value out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    least_distinct: float = 0.5
    most_support: float = 0.9
    match: str = "both"
    central: float = 0.9
    least_gap: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(1, max_new_tokens=self.max_new_tokens)
        check_draw(self.temperature, self.top_p, self.seed)
        if self.match not in MATCHED:
            raise HeadwiseError(f"match takes {', '.join(MATCHED)}; got {self.match!r}")
        for name in ("least_distinct", "least_gap"):
            if not 0 <= checked_number(getattr(self, name), name) <= 1:
                raise HeadwiseError(f"{name} must lie in [0, 1]; got {getattr(self, name):g}")
        for name in ("most_support", "central"):
            if not 0 < checked_number(getattr(self, name), name) <= 1:
                raise HeadwiseError(f"{name} must be above 0 and at most 1; got {getattr(self, name):g}")
