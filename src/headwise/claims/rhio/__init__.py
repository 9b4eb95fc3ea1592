"""Claims of RHIO (card `rhio`): unfaithful answers of a model without its retrieval heads, tuning on both kinds, and contrast."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.rhio.declared import EXACT, READER, TRAINED

EXPERIMENTS = (
    Experiment(
        "rhio-exact", "Branches without heads and new tokens, exactly", EXACT, "headwise.claims.rhio.exact:measure",
        Minutes(lab=0.1, real=0.5, quick_lab=0.1, quick_real=0.5),
    ),
    Experiment(
        "rhio-real", "NQ: faithful and unfaithful answers, tuning on both, contrast", TRAINED, "headwise.claims.rhio.trained:measure",
        Minutes(lab=None, real=47, quick_real=10), data=("nq-open-oracle",), needs="the extra train (peft, accelerate)",
    ),
    Experiment(
        "reader", "ExpertQA: which sentences the documents support, told by heads of a small reader", READER, "headwise.claims.rhio.reader:measure",
        Minutes(lab=None, real=10, quick_real=3), data=("expertqa-rand-test",),
    ),
)  # fmt: skip
