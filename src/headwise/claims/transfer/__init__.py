"""Cross-transfer: heads found by each detector, removed on each task."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.transfer.declared import TRANSFER

EXPERIMENTS = (
    Experiment(
        "transfer", "Heads of eleven detectors, removed on eight tasks", TRANSFER, "headwise.claims.transfer.measure:measure",
        Minutes(lab=1, real=21, quick_lab=1, quick_real=5),
        needs="for the Atlas' detectors a real model and the data set known-facts-1209; the others need none",
    ),
)  # fmt: skip
