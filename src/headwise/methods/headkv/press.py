"""HeadKV (Fu et al. 2024): SnapKV's choice of tokens, with room by how much each head retrieves, over all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwise.caches.allocation import Allocation, ByHead
from headwise.caches.press import WindowPress
from headwise.heads.types import HeadScores


@dataclass(frozen=True, kw_only=True)
class HeadKV(WindowPress):
    """Section 3.2 of the paper: every KV head gets budget x (1 - 1 / beta), and the rest of all heads is shared out by their scores.

    heads: scores of query heads, the mean of a group counts for its KV head; the paper uses its retrieval-reasoning scores, any kind of head
    file will do. beta >= 1: 1 / beta of the budget goes by score (the paper tries 1.005 to 10).
    """

    heads: HeadScores = field(repr=False)
    beta: float = 1.2
    allocation: Allocation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allocation", ByHead(self.heads, self.beta))
        super().__post_init__()
