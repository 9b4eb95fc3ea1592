"""Claims of QRHead (card `qrhead`)."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.qrhead.declared import RANK

EXPERIMENTS = (
    Experiment(
        "rank", "Query heads, all heads, copy heads and random heads rank real passages", RANK, "headwise.claims.qrhead.measure:measure",
        Minutes(lab=4, real=60, quick_lab=0.5, quick_real=4), data=("hotpotqa-distractor", "nq-open-oracle", "dbpedia-entity-40"),
    ),
)  # fmt: skip
