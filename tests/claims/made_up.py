"""A small ledger: experiments that measure nothing, so that running, judging and showing can be tested; and a made-up matrix of `transfer`."""

import json

import numpy as np

from headwise.claims import ledger
from headwise.claims.claim import Claim, Finding
from headwise.claims.experiment import Experiment, Measured, Minutes, NotTestable
from headwise.claims.results import Result
from headwise.claims.transfer.declared import NAMES, OWN

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


TASKS = ("needle", "paraphrased", "passages", "lookup", "induction", "text", "swapped", "memory")


def transfer_details(names=NAMES, untestable=(), missing=None):
    """Details of `transfer` as `measure` gives them: most on the own task; no more than random heads on plain text."""
    rng = np.random.default_rng(0)

    def ends(mean, half):
        return [round(float(one), 4) for one in (mean, mean - half, mean + half)]

    def column(task):
        row = {}
        for name in names:
            mean = 0.03 if task == "text" else rng.uniform(0.3, 0.6) + 2 * (OWN[name] == task)
            row |= {name + end: ends(mean, 0.1) for end in ("", "/a", "/b")}
            row[f"{name}/random"] = ends(rng.uniform(0, 0.05), 0.01)
        return row

    return {
        "heads": {name: ["L0H0", "L1H1"] for name in names},
        "missing": dict(missing or {}),
        "items": {task: [3 if task in untestable else 20, 24] for task in TASKS},
        "increases": {task: None if task in untestable else column(task) for task in TASKS},
        "overlap": {one: {other: round(float(rng.uniform(0.7, 1) if one == other else rng.uniform(0, 0.6)), 4) for other in names} for one in names},
        "by_chance": dict.fromkeys(names, 0.0593),
    }


def write_transfer(folder, model, **changes):
    """A result file of `transfer` in a folder of results, measured with the ledger that is installed."""
    one = next(one for one in ledger.experiments() if one.name == "transfer")
    findings = {claim.key: Finding.none("made up") for claim in one.claims}
    about = {"name": model, "kind": "lab", "layers": 2, "heads": 2, "positions": 512, "weights": "0"}
    result = Result("transfer", ledger.digest(one), about, False, 0, findings, transfer_details())
    told = result.to_json() | changes
    (folder / model).mkdir(parents=True)
    (folder / model / "transfer.json").write_text(json.dumps(told))
