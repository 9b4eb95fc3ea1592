"""Claims of the card `unwanted-uncertainty` in the micro-world: answers that are taken back where that is cued."""

from __future__ import annotations

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.unwanted_uncertainty.declared import calming

DATA = (
    "re-asked facts of the micro-world in their text, yes or no, with and without the cue (world-6m-reask was taught to take answers back where it "
    "is cued)"
)

EXPERIMENTS = (
    Experiment(
        "doubt-lab", "Re-asked facts of the micro-world: heads, a remedy, its test", calming("lab", DATA, cued=True),
        "headwise_lab.claims.unwanted_uncertainty.measure:measure", Minutes(lab=0.5, real=None, quick_lab=0.5),
    ),
)  # fmt: skip
