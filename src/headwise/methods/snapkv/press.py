"""SnapKV (Li et al. 2024): keep what the last queries of the prompt look at, chosen for every KV head by its own query heads."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.caches.press import WindowPress


@dataclass(frozen=True, kw_only=True)
class SnapKV(WindowPress):
    """Section 4 of the paper, with average pooling as in its released code. Query heads are grouped as the model groups them: h // (H / G)."""
