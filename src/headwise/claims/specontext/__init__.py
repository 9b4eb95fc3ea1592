"""Claims of SpeContext (card `specontext`): sparse decoding, distilled choosers, slots and the plan of memory."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.specontext.declared import DECODE, DISTILLED, EXACT, PLANNER, SPEED, TRAINED

_HERE = "headwise.claims.specontext"
EXPERIMENTS = (
    Experiment(
        "sparse-exact", "Slots and whole budgets give what full attention over the same positions gives", EXACT, f"{_HERE}.slots_exact:measure",
        Minutes(lab=0.1, real=0.5, quick_lab=0.05, quick_real=0.3),
    ),
    Experiment(
        "sparse-planner", "The plan of memory against every plan, and against algorithm 1 as printed", PLANNER, f"{_HERE}.planner:measure",
        Minutes(lab=0.1, real=0.2, quick_lab=0.05, quick_real=0.1),
    ),
    Experiment(
        "sparse-decode", "Choosers without training: attention that is kept, needles, running text, what moves", DECODE, f"{_HERE}.decode:measure",
        Minutes(lab=2.5, real=25, quick_lab=0.4, quick_real=4),
    ),
    Experiment(
        "draft-training", "Draft heads trained in six ways, as choosers", DISTILLED, f"{_HERE}.drafts:measure",
        Minutes(lab=9, real=33, quick_lab=0.6, quick_real=6),
    ),
    Experiment(
        "draft-books", "A draft head trained on books, beside the query of the step before and recency", TRAINED, f"{_HERE}.book_draft:measure",
        Minutes(lab=1.5, real=26, quick_lab=0.4, quick_real=4), data=("books-large",),
    ),
    Experiment(
        "sparse-speed", "Time per token behind long texts: choosers, full attention, the bound", SPEED, f"{_HERE}.speed:measure",
        Minutes(lab=3, real=3.6), alone=True,
    ),
)  # fmt: skip
