"""Claims of ZigzagAttention and of DuoAttention, its basis (card `zigzagattention`)."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.zigzagattention.declared import EXACT, GATES, LAYERS, NEEDLES, TIME

_HERE = "headwise.claims.zigzagattention"
EXPERIMENTS = (
    Experiment(
        "zigzag-exact", "Where nothing may be lost, streaming changes nothing", EXACT, f"{_HERE}.exact:measure",
        Minutes(lab=0.1, real=0.3, quick_lab=0.1, quick_real=0.3),
    ),
    Experiment(
        "zigzag-time", "Whole layers against mixed layers: time of a token", TIME, f"{_HERE}.cost:measure",
        Minutes(lab=0.1, real=0.4), alone=True,
    ),
    Experiment(
        "zigzag-gates", "Gates: which heads, other choices, losses, precision, ways to read a prompt", GATES, f"{_HERE}.gates:measure",
        Minutes(lab=3, real=24, quick_lab=1, quick_real=10),
    ),
    Experiment(
        "zigzag-layers", "Whole layers by five rules against heads", LAYERS, f"{_HERE}.layers:measure",
        Minutes(lab=1.5, real=14, quick_lab=0.6, quick_real=8),
    ),
    Experiment(
        "streaming-needles", "Needles with half of the KV heads or of the layers whole", NEEDLES, f"{_HERE}.needles:measure",
        Minutes(lab=0.3, real=13, quick_lab=0.2, quick_real=4),
    ),
)  # fmt: skip
