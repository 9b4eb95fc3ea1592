"""StreamingLLM (Xiao et al. 2024): keep the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwise.caches.kept_layer import View
from headwise.caches.press import Press


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Press):
    """Section 3.2 of the paper (4 sinks) as an eviction at the end of the prefill: `sinks` first positions and the budget - sinks last ones.

    The paper goes on evicting while it decodes and counts positions inside the cache; here new tokens are added and keys keep the rotation
    of their place in the text, so that it is compared with the other presses on equal terms.
    """

    def scores(self, view: View) -> Tensor:
        """The position in the text, so that the last ones are the best.

        Args:
            view: The layer.

        Returns:
            [B or 1, 1, S]: one score for all KV heads.
        """
        return view.positions[:, None].float()
