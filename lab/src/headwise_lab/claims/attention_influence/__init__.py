"""Claims of AttentionInfluence (card `attention-influence`) on documents of the micro-world, and on trainings by the recipe of the lab models."""

from headwise.claims.experiment import Experiment, Minutes
from headwise_lab.claims.attention_influence.declared import LENGTHS, SEPARATION, TRAINING

_HERE = "headwise_lab.claims.attention_influence."
EXPERIMENTS = (
    Experiment(
        "influence-separation", "Documents with references against documents without, and documents that repeat", SEPARATION,
        _HERE + "separation:measure", Minutes(lab=3, real=8.8, quick_lab=0.5, quick_real=4),
    ),
    Experiment(
        "influence-lengths", "Documents of several lengths, and ranking inside strata of length", LENGTHS, _HERE + "lengths:measure",
        Minutes(lab=0.4, real=None, quick_lab=0.2),
    ),
    Experiment(
        "influence-training", "Training on a corpus and once more on a fifth of it: chosen, random, longest", TRAINING,
        _HERE + "training:measure", Minutes(lab=40, real=None, quick_lab=2), data=("books-large",), needs="pyarrow (the extra scale), a C++ compiler",
    ),
)  # fmt: skip
