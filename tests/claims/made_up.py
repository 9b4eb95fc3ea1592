"""A small ledger: experiments that measure nothing, so that running, judging and showing can be tested."""

import numpy as np

from headwise.claims.claim import Claim, Finding
from headwise.claims.experiment import Experiment, Measured, Minutes, NotTestable

ABOVE = Claim(
    "made.above", "qrhead", "1", "what is chosen is above chance", "share of right answers", rule=("share >= 0.5", "gain.low > 0"),
    gate=("recall >= 0.8",), control="random", paper="0.7",
)  # fmt: skip
TESTED = Claim("made.tested", "qrhead", "2", "it differs", "difference", rule=("difference > 0",), tested=True)
BELOW = Claim("made.below", "qrhead", "3", "it is small", "error", rule=("error <= 1e-5",))
HEADS = Claim("other.heads", "cafe", "1", "the model has heads", "number of heads", rule=("heads > 0",))
HARD = Claim("hard.gpu", "cafe", "9", "it is fast on a GPU", "ratio", rule=("ratio > 2",))


def measured_above(bench):
    """Three claims; a part is kept in a cell, and read again where it was."""
    cells = bench.cells("part", {})
    kept = cells.load("one")
    if kept is None:
        cells.save("one", {"value": np.array([0.7])}, [])
        kept = cells.load("one")
        bench.report(1, 2, "half")
        if getattr(measured_above, "stop", False):
            raise KeyboardInterrupt
    share = float(kept[0]["value"][0])
    return Measured(
        {
            "made.above": Finding({"share": (share, 0.6, 0.8), "gain": (0.2, 0.1, 0.3), "recall": 0.9, "random": 0.4}),
            "made.tested": Finding({"difference": (0.1, -0.1, 0.3)}, p=0.2),
            "made.below": Finding({"error": 2e-6}, note="in float32"),
        },
        {"rows": [1, 2]},
    )


def measured_heads(bench):
    return Measured({"other.heads": Finding({"heads": float(bench.model.heads.shape[1])})})


def measured_nothing(bench):
    raise NotTestable("needs a GPU")


EXPERIMENTS = (
    Experiment("made", "Made up", (ABOVE, TESTED, BELOW), f"{__name__}:measured_above", Minutes(1, 10, 0.1, 1)),
    Experiment("heads", "Heads", (HEADS,), f"{__name__}:measured_heads", Minutes(0.1, 0.2, 0.1, 0.1)),
    Experiment("gpu", "GPU", (HARD,), f"{__name__}:measured_nothing", Minutes(None, 1, None, 1), data=("big-set",)),
)


def install(monkeypatch):
    """Put these in place of the ledger."""
    monkeypatch.setattr("headwise.claims.ledger.experiments", lambda: EXPERIMENTS)
