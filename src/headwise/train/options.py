"""How adapters and scales are trained."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.heads.errors import HeadwiseError
from headwise.heads.plain import checked_seed

PARTS = ("query", "key", "value", "output")


@dataclass(frozen=True)
class Steps:
    """Steps of AdamW (betas 0.9 and 0.999, no weight decay, cosine schedule).

    Attributes:
        steps: How many.
        batch: Examples per pass.
        accumulate: Passes per step.
        rate: Peak learning rate, in (0, 1).
        warmup: Share of the steps in which the rate rises, in [0, 1).
        length: Longest example in tokens.
        save_every: Steps after which the state is kept.
        checkpointing: Compute hidden states a second time in the backward pass and hold fewer of them.
        seed: Of the order of the examples, and of the first weights of what is trained, where they are drawn.
    """

    steps: int = 200
    batch: int = 1
    accumulate: int = 4
    rate: float = 2e-4
    warmup: float = 0.05
    length: int = 2048
    save_every: int = 50
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("length", 16), ("save_every", 1)):
            self._check_whole(name, least)
        if not 0 < self.rate < 1 or not 0 <= self.warmup < 1:
            raise HeadwiseError(f"rate must lie in (0, 1) and warmup in [0, 1); got {self.rate!r} and {self.warmup!r}")
        checked_seed(self.seed)

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise HeadwiseError(f"{name} must be a whole number from {least} on; got {value!r}")


@dataclass(frozen=True)
class Tuning(Steps):
    """Steps on a LoRA adapter (Hu et al. 2021, arXiv:2106.09685) of attention.

    Attributes:
        rank: Of the adapter; its factor is 2 (lora_alpha = 2 * rank), its dropout 0.
        parts: Projections of attention that are adapted.
        rows: Only rows that make queries and keys of the chosen heads learn (no part of MuDAF's paper).
    """

    rank: int = 16
    parts: tuple[str, ...] = PARTS
    rows: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("rank", 1)
        if not self.parts or set(self.parts) - set(PARTS):
            raise HeadwiseError(f"parts must name some of {', '.join(PARTS)}; got {', '.join(self.parts) or 'none'}")
        if self.rows and set(self.parts) - {"query", "key"}:
            raise HeadwiseError("rows trains queries and keys of the chosen heads alone; set parts to query, key or both")
