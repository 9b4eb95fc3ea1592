"""Cross-transfer: heads found by each detector, removed on each task."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.transfer.declared import TRANSFER, TRANSFER_ALL

_MEASURE = "headwise.claims.transfer.measure"
EXPERIMENTS = (
    Experiment(
        "transfer", "Heads of seven detectors, removed on six tasks", TRANSFER, f"{_MEASURE}:plain",
        Minutes(lab=5, real=40, quick_lab=1, quick_real=5),
    ),
    Experiment(
        "transfer-all", "Heads of eleven detectors, removed on eight tasks", TRANSFER_ALL, f"{_MEASURE}:knowledge",
        Minutes(lab=None, real=90), data=("nq-open-oracle",),
    ),
)  # fmt: skip
