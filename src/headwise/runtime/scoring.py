"""How attention becomes one value per passage; shared by detection and ranking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headwise.heads.errors import HeadwiseError
from headwise.maths.passages import NORMALIZE
from headwise.prompts.passages import NULL_QUERY, PassageComposer
from headwise.runtime.passages import Suffix

SPANS = ("query", "official")


@dataclass(frozen=True)
class Scoring:
    """span: rows that are averaged: everything behind the passages (`official`, as in the released code), or the `query`'s own words.

    trim, normalize, strict: see `pool_passages`; trimming acts on calibrated values only. null_query: what calibration subtracts.
    """

    span: str = "official"
    trim: float | None = None
    normalize: str = "sum"
    strict: bool = False
    null_query: str = NULL_QUERY

    def __post_init__(self) -> None:
        for name, allowed in (("span", SPANS), ("normalize", NORMALIZE)):
            if getattr(self, name) not in allowed:
                raise HeadwiseError(f"unknown {name} {getattr(self, name)!r}; use {', '.join(allowed)}")
        if self.trim is not None and self.trim <= 0:
            raise HeadwiseError(f"trim must be above 0 standard deviations; got {self.trim:g}")

    def suffixes(self, composer: PassageComposer, queries: Iterable[str]) -> list[Suffix]:
        """What stands behind the passages for each query, with the rows that count."""
        prompts = [composer.query(query) for query in queries]
        return [Suffix(prompt.ids, prompt.span(self.span)) for prompt in prompts]


# The released procedure: everything behind the passages, tokens at or below mean - 2 standard deviations left out.
OFFICIAL = Scoring(trim=2.0, strict=True)
