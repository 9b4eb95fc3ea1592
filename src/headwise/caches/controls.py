"""Controls: everything kept, random tokens, and an oracle that keeps the answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwise.caches.kept_layer import Keep, View
from headwise.caches.press import Press
from headwise.heads.errors import HeadwiseError
from headwise.models.model import Model


@dataclass(frozen=True)
class Full:
    """Keeps everything: the full cache, behind the same attention as every method. Its `prefill` is dense, as it is for presses."""

    prefill: str = field(default="dense", init=False, repr=False)

    def check(self, model: Model) -> None:
        """Fits all models."""

    def streams(self, layer: int, model: Model) -> None:
        """No windows."""

    def kept(self, view: View) -> Sequence[Keep]:
        """All positions of all heads."""
        return [Keep()]


@dataclass(frozen=True, kw_only=True)
class RandomTokens(Press):
    """Random positions besides the first and last ones, other ones in every layer and KV head; a function of the seed and the position.

    Attributes:
        seed: At least 0; the same seed keeps the same positions again. The other attributes are those of `Press`.

    Raises:
        HeadwiseError: A negative seed, or what `Press` refuses.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise HeadwiseError(f"the seed must be 0 or more; got {self.seed}")

    def scores(self, view: View) -> Tensor:
        """[B or 1, KV heads, S] in [0, 1). Rows with padding get what they would get alone."""
        generator = torch.Generator().manual_seed((self.seed << 16) + view.layer)
        drawn = torch.rand(view.keys.shape[2], view.model.heads.kv_heads, generator=generator).to(view.keys.device)
        return drawn[view.positions.clamp(min=0).long()].transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Oracle(Press):
    """Keeps the given positions of the prompt first (those of the answer), then the most recent ones. For evaluation only: nobody knows them.

    Attributes:
        positions: In the text, counted from 0; the latest of them if the budget does not hold all. The other attributes are those of `Press`.
    """

    positions: tuple[int, ...]

    def scores(self, view: View) -> Tensor:
        """[B or 1, 1, S]: the position, and given ones above all others.

        Raises:
            HeadwiseError: A position that the prompt does not have.
        """
        length = int(view.positions.max()) + 1
        if not all(0 <= position < length for position in self.positions):
            raise HeadwiseError(f"the oracle's positions must lie in a prompt of {length} tokens; got {list(self.positions)}")
        given = torch.isin(view.positions, torch.tensor(self.positions, dtype=view.positions.dtype, device=view.positions.device))
        return (view.positions - length * ~given)[:, None].float()
