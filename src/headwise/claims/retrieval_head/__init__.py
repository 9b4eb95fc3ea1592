"""Claims of the paper on retrieval heads (card `retrieval-head`); those that need the micro-world are in headwise-lab."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.retrieval_head.declared import DETECTION, FACTS, REMOVAL
from headwise.claims.retrieval_head.declared_card import EXACT, LARGE, MAPS, SWEEPS

_HERE = "headwise.claims.retrieval_head"
EXPERIMENTS = (
    Experiment(
        "copy-exact", "Copy scores: one pass equals the slow procedure, and old errors are not repeated", EXACT, f"{_HERE}.exact:measure",
        Minutes(lab=0.1, real=0.6, quick_lab=0.1, quick_real=0.6),
    ),
    Experiment(
        "heads", "Which heads copy, how many, in which contexts, and the same on other prompts", (*DETECTION, *MAPS), f"{_HERE}.score_maps:measure",
        Minutes(lab=0.3, real=10, quick_lab=0.3, quick_real=3),
    ),
    Experiment(
        "heads-removed", "What removing the heads that copy costs, beside random heads, other modes, another scope, other words", (*REMOVAL, *SWEEPS),
        f"{_HERE}.removed:measure", Minutes(lab=2, real=12, quick_lab=0.8, quick_real=5),
    ),
    Experiment(
        "heads-facts", "Facts known by heart, contradicted facts and written steps without the heads that copy", FACTS, f"{_HERE}.reasoning:measure",
        Minutes(lab=None, real=12, quick_real=4), data=("relations-lre",),
    ),
    Experiment(
        "heads-large", "Claims of the paper that only a large model can show", LARGE, f"{_HERE}.large:measure",
        Minutes(lab=None, real=0.1, quick_real=0.1), needs="a model of 7 billion parameters and data that are not published",
    ),
)  # fmt: skip
