"""PyramidKV (Cai et al. 2024): SnapKV's choice of tokens, with less room from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwise.caches.allocation import Allocation, Pyramid
from headwise.caches.press import WindowPress


@dataclass(frozen=True, kw_only=True)
class PyramidKV(WindowPress):
    """Section 3 of the paper: budgets fall linearly with depth, tokens are chosen by the last 8 queries (its alpha).

    The budget of a layer includes its window and sinks, and is computed anew for every prompt.

    Attributes:
        beta: At least 1; the last layer gets the mean budget / beta (20 in the paper).
        allocation: Follows from `beta`.
    """

    beta: float = 20
    allocation: Allocation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allocation", Pyramid(self.beta))
        super().__post_init__()
