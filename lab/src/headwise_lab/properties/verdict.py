"""Verdicts by rule: each property is a list of checks, and what they give together is never written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HOLDS, PARTLY, FAILS, UNKNOWN = "holds", "partly", "does not hold", "not measured"
RULE = (
    "holds: every check that could be measured passes. does not hold: every main check fails. partly: anything between. "
    "not measured: no main check could be measured."
)


@dataclass(frozen=True)
class Check:
    """One yes-or-no question to the data.

    Attributes:
        model: Whom it is about.
        what: What was measured.
        value: Its value, as text.
        rule: What it is compared with.
        holds: Whether it passes; None: not measured, `note` says why.
        main: See `RULE`.
        note: One remark.
    """

    model: str
    what: str
    value: str
    rule: str
    holds: bool | None
    main: bool = True
    note: str = ""


def missing(model: str, what: str, rule: str, why: str, main: bool = True) -> Check:
    """A check that could not be measured; `why` becomes its note, the others are fields of `Check`."""
    return Check(model, what, "–", rule, None, main, why)


def verdict_of(checks: Sequence[Check]) -> str:
    """See `RULE`."""
    known = [check for check in checks if check.holds is not None]
    main = [check for check in known if check.main]
    if not main:
        return UNKNOWN
    if all(check.holds for check in known):
        return HOLDS
    return PARTLY if any(check.holds for check in main) else FAILS


@dataclass(frozen=True)
class Property:
    """One property of retrieval heads.

    Attributes:
        key: Its name in files.
        title: Its name on pages.
        claim: What is claimed.
        found: What was found, in one line.
        checks: What decides.
        data: Plain data behind its figures.
        notes: How to read the checks.
    """

    key: str
    title: str
    claim: str
    found: str
    checks: Sequence[Check]
    data: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_json(self, paper: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Plain data with the verdict and what the paper says."""
        return {
            "key": self.key,
            "title": self.title,
            "claim": self.claim,
            "verdict": verdict_of(self.checks),
            "found": self.found,
            "paper": list(paper),
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
            "data": self.data,
        }


def share(value: float, digits: int = 0) -> str:
    """A share as per cent; NaN as a dash."""
    return "–" if value != value else f"{100 * value:.{digits}f} %"


def p_text(p: float) -> str:
    """`p 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def span_of(values: Sequence[float], digits: int = 2) -> str:
    """`0.81` or `0.81–0.93`."""
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
