"""Claims of the card `unwanted-uncertainty` in the micro-world: answers that are taken back where that is cued."""

from __future__ import annotations

from headwise.claims.experiment import Bench, Experiment, Measured, Minutes
from headwise.claims.unwanted_uncertainty.declared import calming
from headwise.claims.unwanted_uncertainty.remedies import calmed
from headwise_lab.doubt import write_reask

QUESTIONS = 600
DATA = (
    "re-asked facts of the micro-world in their text, yes or no, with and without the cue (world-6m-reask was taught to take answers back where it "
    "is cued)"
)


def measure(bench: Bench) -> Measured:
    """All claims about the set `lab`."""
    data, wordings = write_reask(bench.work / "reask", bench.pick(QUESTIONS, 120))
    asked = {"data": data, "wordings": wordings, "passages": True, "wording": "bare", "form": "yes-no", "max_new_tokens": 24}
    return calmed(bench, "lab", asked, cued=True)


EXPERIMENTS = (
    Experiment(
        "doubt-lab", "Re-asked facts of the micro-world: heads, a remedy, its test", calming("lab", DATA, cued=True),
        "headwise_lab.claims.unwanted_uncertainty:measure", Minutes(lab=0.5, real=None, quick_lab=0.5),
    ),
)  # fmt: skip
