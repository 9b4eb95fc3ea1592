"""Re-asked facts of the micro-world."""

from __future__ import annotations

from headwise.claims.experiment import Bench, Measured
from headwise.claims.unwanted_uncertainty.remedies import calmed
from headwise_lab.doubt import write_reask

QUESTIONS = 600


def measure(bench: Bench) -> Measured:
    """All claims about the set `lab`."""
    data, wordings = write_reask(bench.work / "reask", bench.pick(QUESTIONS, 120))
    asked = {"data": data, "wordings": wordings, "passages": True, "wording": "bare", "form": "yes-no", "max_new_tokens": 24}
    return calmed(bench, "lab", asked, cued=True)
