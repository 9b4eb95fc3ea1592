"""AdaKV (Feng et al. 2024): SnapKV's scores, with more room for those KV heads of a layer whose scores are high."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwise.caches.allocation import Adaptive, Allocation
from headwise.caches.press import WindowPress


@dataclass(frozen=True, kw_only=True)
class AdaKV(WindowPress):
    """Ada-SnapKV, algorithms 1 and 2 of the paper: the highest scores of all KV heads of a layer share that layer's budget.

    Attributes:
        floor: Share of the budget, in [0, 1], that every head has for sure, its own highest scores first. The paper's safeguard (0.2) mixes the
            adaptive counts with even ones instead; both leave no head with less than the floor.
    """

    floor: float = 0.2
    allocation: Allocation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allocation", Adaptive(self.floor))
        super().__post_init__()
