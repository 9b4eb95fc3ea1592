"""Claims of QRHead (card `qrhead`)."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.qrhead.declared import EXACT, RANK, TRANSFORMED

EXPERIMENTS = (
    Experiment(
        "rank", "Query heads, all heads, copy heads and random heads rank real passages", RANK, "headwise.claims.qrhead.measure:measure",
        Minutes(lab=4, real=15, quick_lab=0.5, quick_real=4), data=("hotpotqa-distractor", "nq-open-oracle", "dbpedia-entity-40"),
    ),
    Experiment(
        "query-exact", "What scoring passages costs and leaves out", EXACT, "headwise.claims.qrhead.exact:measure",
        Minutes(lab=0.2, real=1.2, quick_lab=0.1, quick_real=0.7),
    ),
    Experiment(
        "query-transformed", "Query heads and copy heads where answers are not copied", TRANSFORMED, "headwise.claims.qrhead.transformed:measure",
        Minutes(lab=0, real=0, quick_lab=0, quick_real=0), needs="a model that was trained to answer in other words than the passage's",
    ),
)  # fmt: skip
