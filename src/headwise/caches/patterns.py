"""Compression by patterns: some heads keep the whole text, the others the first and the most recent tokens, whatever the prompt is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headwise.caches.groups import Window
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import PREFILLS, Keep, View
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores
from headwise.maths.gates import Pattern, kept_count
from headwise.models.model import Model


@dataclass(frozen=True, eq=False)
class StreamingPattern(ABC):
    """Base of such methods; used like a press: `with method(model) as cache: ...`.

    Layers without full attention are left as they are.

    Attributes:
        heads: Gates (of `headwise detect gate`, or a released table), or the pattern itself.
        keep: Share that keeps the whole text, in (0, 1]; a given pattern needs none.
        sinks: First tokens that the others see, at least 1.
        recent: Most recent tokens that they see, at least 1.
        prefill: `dense` (the prompt is read with full attention, then streaming heads drop what they do not keep), `chunked` (a block of tokens sees
            itself and what was held before it) or `windowed` (every token sees its exact window).
    """

    found_by: ClassVar[str] = "gate"  # the detector whose head file it takes by default

    heads: Any
    keep: float = 0.5
    sinks: int = 64
    recent: int = 256
    prefill: str = "dense"

    def __post_init__(self) -> None:
        if self.prefill not in PREFILLS:
            raise HeadwiseError(f"unknown prefill {self.prefill!r}; use {', '.join(PREFILLS)}")
        if self.sinks < 1 or self.recent < 1:
            raise HeadwiseError(f"sinks and recent must be at least 1 token each; got {self.sinks} and {self.recent}")
        kept_count(self.keep, 1)

    def __call__(self, model: Any) -> AbstractContextManager[KeptCache]:
        """The `compress` block of this method."""
        return compress(model, self)

    @abstractmethod
    def pattern(self, model: Model) -> Pattern:
        """What keeps the whole text.

        Args:
            model: Whose heads they are.

        Returns:
            `kept` is bool [layers with full attention] or [layers with full attention, KV heads], True for those that keep it.

        Raises:
            HeadwiseError: Heads of another model.
        """

    def check(self, model: Model) -> None:
        """Raise `HeadwiseError` if the heads belong to another model."""
        self.pattern(model)

    def streams(self, layer: int, model: Model) -> Sequence[Keep]:
        """A layer's heads that keep everything, and its streaming heads with their window; see `Compressor.streams`."""
        kept = np.asarray(self.pattern(model).kept[model.heads.full_layers.index(layer)])
        window = Window(self.sinks, self.recent)
        if kept.all() or not kept.any():
            return [Keep(None, None, None if kept.all() else window)]
        return [Keep(tuple(np.flatnonzero(kept))), Keep(tuple(np.flatnonzero(~kept)), None, window)]

    def kept(self, view: View) -> Sequence[Keep]:
        """The same after a dense prefill."""
        return self.streams(view.layer, view.model)

    def describe(self, model: Model) -> dict[str, Any]:
        """All that decides a result, and what came of it, as plain data."""
        pattern, gates = self.pattern(model), isinstance(self.heads, HeadScores)
        return {
            "method": type(self).__name__.lower(),
            "prefill": self.prefill,
            "sinks": self.sinks,
            "recent": self.recent,
            "keep": self.keep if gates else None,
            "share_kept": float(pattern.kept.mean()),
            "ties_decided": pattern.tied,
            "cut": None if np.isnan(pattern.cut) else pattern.cut,
            "high_cut": pattern.high_cut,
            "gates_found_with": self.heads.provenance.get("options") if gates else None,
        }
