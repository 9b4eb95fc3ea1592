"""Claims of SpeContext (card `specontext`): sparse decoding, distilled choosers, slots and the plan of memory."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.specontext.declared import EXACT, PLANNER

_HERE = "headwise.claims.specontext"
EXPERIMENTS = (
    Experiment(
        "sparse-exact", "Slots and whole budgets give what full attention over the same positions gives", EXACT, f"{_HERE}.slots_exact:measure",
        Minutes(lab=0.1, real=0.6, quick_lab=0.05, quick_real=0.3),
    ),
    Experiment(
        "sparse-planner", "The plan of memory against every plan, and against algorithm 1 as printed", PLANNER, f"{_HERE}.planner:measure",
        Minutes(lab=0.1, real=0.2, quick_lab=0.05, quick_real=0.1),
    ),
)  # fmt: skip
