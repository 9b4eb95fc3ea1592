"""Answers that are not copied: what it would take to measure them."""

from __future__ import annotations

from headwise.claims.experiment import Bench, Measured, NotTestable


def measure(bench: Bench) -> Measured:
    """Nothing yet.

    Raises:
        NotTestable: Always.
    """
    raise NotTestable(
        "needs a model of 5 to 10 million parameters that was trained on passages whose answers must be transformed (a table of synonyms, such as "
        "codes of colours), about 6 hours on two cores, and a task of the micro-world that makes them; no such model is there"
    )
