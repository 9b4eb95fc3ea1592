"""Claims of AttentionInfluence (card `attention-influence`) that need no micro-world; those that do are in `headwise_lab.claims`."""

from headwise.claims.attention_influence.declared import AGREEMENT, CHOICE, EXACT, HEADS, PAPER, RESUME
from headwise.claims.experiment import Experiment, Minutes

_HERE = "headwise.claims.attention_influence."
EXPERIMENTS = (
    Experiment(
        "influence-heads", "Heads that look up keys, in the model and in one with random weights", HEADS, _HERE + "proxy_heads:measure",
        Minutes(lab=0.1, real=0.6, quick_lab=0.1, quick_real=0.6),
    ),
    Experiment(
        "influence-exact", "Exact: the operator, the formula, the exported checkpoint, one pass for both losses", EXACT, _HERE + "exact:measure",
        Minutes(lab=0.1, real=1.5, quick_lab=0.1, quick_real=0.7),
    ),
    Experiment(
        "influence-resume", "A scoring job killed at random points", RESUME, _HERE + "resume:measure",
        Minutes(lab=0.4, real=1.5, quick_lab=0.4, quick_real=1.5), needs="pyarrow (the extra scale)",
    ),
    Experiment(
        "influence-agreement", "A model and a lab model score the same real documents", AGREEMENT, _HERE + "agreement:measure",
        Minutes(lab=0.6, real=3, quick_lab=0.6, quick_real=3), data=("books-large", "wikitext-2", "gsm8k"), needs="headwise-lab (its lab models)",
    ),
    Experiment(
        "influence-choice", "What the chosen fifth of real documents looks like", CHOICE, _HERE + "choice:measure",
        Minutes(lab=2.5, real=5, quick_lab=0.7, quick_real=5), data=("books-large", "wikitext-2", "gsm8k"),
    ),
    Experiment(
        "influence-paper", "What takes models and trainings of the paper's size", PAPER, _HERE + "beyond:measure",
        Minutes(lab=0.01, real=0.01, quick_lab=0.01, quick_real=0.01),
    ),
)  # fmt: skip
