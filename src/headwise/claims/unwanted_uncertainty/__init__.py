"""Claims of the paper on unwanted uncertainty (card `unwanted-uncertainty`): answers that are taken back, and heads that do it."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.unwanted_uncertainty.declared import EXACT, RECALL, SETS, START, YES_NO, calming

_WHERE = "headwise.claims.unwanted_uncertainty"

EXPERIMENTS = (
    Experiment(
        "doubt-exact", "The second turn is run alone, exactly", EXACT, f"{_WHERE}.exact:measure",
        Minutes(lab=0.1, real=0.8, quick_lab=0.1, quick_real=0.8),
    ),
    Experiment(
        "doubt-start-token", "A start token in front of the needle moves copy scores", (START,), f"{_WHERE}.copying:start_token",
        Minutes(lab=0.1, real=1.2, quick_lab=0.1, quick_real=1),
    ),
    Experiment(
        "doubt-recall", "First answers without copy heads", (RECALL,), f"{_WHERE}.copying:recall",
        Minutes(lab=0.1, real=4, quick_lab=0.1, quick_real=2),
    ),
    Experiment(
        "doubt-needles", "Needles whose answer is challenged: heads, a remedy, its test", calming("needles", SETS["needles"]),
        f"{_WHERE}.remedies:needles", Minutes(lab=0.4, real=6, quick_lab=2, quick_real=10),
    ),
    Experiment(
        "doubt-facts", "Facts whose answer is challenged: heads, a remedy, its test", (*calming("facts", SETS["facts"]), YES_NO),
        f"{_WHERE}.remedies:facts", Minutes(lab=None, real=8, quick_real=6), data=("relations-lre",),
    ),
    Experiment(
        "doubt-nq", "Questions with a passage whose answer is challenged: heads, a remedy, its test", calming("nq", SETS["nq"]),
        f"{_WHERE}.remedies:nq", Minutes(lab=None, real=50, quick_real=8), data=("nq-open-oracle",),
    ),
)  # fmt: skip
