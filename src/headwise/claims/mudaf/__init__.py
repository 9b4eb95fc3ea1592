"""Claims of MuDAF (card `mudaf`): training with a contrastive loss on heads."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.mudaf.declared import EXACT, FIRST, REAL, training

EXPERIMENTS = (
    Experiment(
        "mudaf-exact", "What the loss on heads reaches, exactly", EXACT, "headwise.claims.mudaf.exact:measure",
        Minutes(lab=0.1, real=0.5, quick_lab=0.1, quick_real=0.5),
    ),
    Experiment(
        "mudaf-real", "Real questions over passages: heads of several scores are trained, and judged", training("smollm2", REAL),
        "headwise.claims.mudaf.trained:measure", Minutes(lab=None, real=55, quick_real=12), data=("nq-open-oracle", "hotpotqa-distractor"),
        needs="the extra train (peft, accelerate)",
    ),
    Experiment(
        "mudaf-question-first", "The question in front of the passages", (FIRST,), "headwise.claims.mudaf.trained:question_first",
        Minutes(lab=0.01, real=None, quick_lab=0.01), needs="a prompt builder that puts questions in front of passages",
    ),
)  # fmt: skip
