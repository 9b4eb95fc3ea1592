"""Prompts: token ids with named spans that are known by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from headwise.heads.errors import PromptError


class Span(NamedTuple):
    """Token positions [start, stop)."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class Prompt:
    """Token ids and the spans of their parts (`needle`, `answer`, `question`, `passage/3`, ...).

    ids: the whole prompt; the last id is the query position that predicts the first answer token.
    spans: name -> Span inside ids.
    gold: ids of the expected answer, to be verified as a draft (may be empty).
    """

    ids: tuple[int, ...]
    spans: Mapping[str, Span] = field(default_factory=dict)
    gold: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise PromptError("a prompt needs at least one token")
        for name, span in self.spans.items():
            if not 0 <= span.start < span.stop <= len(self.ids):
                raise PromptError(f"span {name!r} is [{span.start}, {span.stop}) in a prompt of {len(self.ids)} tokens")

    def span(self, name: str) -> Span:
        """The span called `name`; `PromptError` names the known ones."""
        if name not in self.spans:
            raise PromptError(f"the prompt has no span {name!r}; it has {', '.join(sorted(self.spans)) or 'none'}")
        return self.spans[name]
