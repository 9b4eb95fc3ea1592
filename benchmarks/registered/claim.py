"""A claim that was written down before its number, and the three verdicts."""

from __future__ import annotations

from dataclasses import dataclass

LEVEL = 0.05  # of corrected p-values


@dataclass(frozen=True)
class Claim:
    """One claim, registered before its number.

    Attributes:
        key: Family and name, such as `rank.query_above_all.hotpotqa`.
        card: Method card and number of the claim there.
        sentence: What is claimed, in our words.
        gate: What the unablated model must do, so that the claim can be tested at all; empty: nothing.
        rule: Metric, direction and threshold.
        data: Data and splits.
        controls: What stands beside the chosen heads.
        command: What measures it.
    """

    key: str
    card: str
    sentence: str
    gate: str
    rule: str
    data: str
    controls: str
    command: str


def verdict(holds: bool | None) -> str:
    """The three verdicts; None: the gate failed."""
    return "not testable on this model" if holds is None else "held" if holds else "not held"
