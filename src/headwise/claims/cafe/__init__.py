"""Claims of CAFE (card `cafe`)."""

from headwise.claims.cafe.declared import EXACT, REAL
from headwise.claims.experiment import Experiment, Minutes

EXPERIMENTS = (
    Experiment(
        "cafe", "Evidence that heads' votes keep of real passages, and answers with and without the two stages", REAL,
        "headwise.claims.cafe.measure:measure", Minutes(lab=4, real=12, quick_lab=0.5, quick_real=4), data=("hotpotqa-distractor", "nq-open-oracle"),
    ),
    Experiment(
        "cafe-exact", "Steering is an additive mask over passages that are read once", EXACT, "headwise.claims.cafe.exact:measure",
        Minutes(lab=0.1, real=0.5, quick_lab=0.1, quick_real=0.5),
    ),
)  # fmt: skip
