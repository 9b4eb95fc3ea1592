"""A linear probe on heads, and its file: one small JSON with all that is needed to judge it, sealed against changes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadFileError, HeadwiseError
from headwise.heads.files import read_json, write_atomically
from headwise.heads.text import reason
from headwise.heads.types import HeadSet
from headwise.models.fingerprint import tokenizer_digest, weights_digest
from headwise.models.model import Model
from headwise.stats.places import FARTHEST
from headwise.stats.probes import Linear, Platt

SCHEMA = 1
BAND = (0.25, 0.75)  # between odds of 1 to 3 and of 3 to 1 a token is called unsure


@dataclass(frozen=True)
class Probe:
    """Weights of heads that tell read tokens from remembered ones, for one model.

    Attributes:
        heads: Its K heads.
        weights: [K], of what each head says about the token (`HeadLens.scores`).
        bias: Added to the weighted sum.
        threshold: Score from which on a token counts as read, where a yes or no is wanted.
        calibration: Score -> probability that the token was read.
        band: Probabilities between these two are called unsure.
        shift: How many positions behind a source token these heads look.
        weights_digest: Of the model's weights, see `headwise.models.fingerprint`.
        tokenizer_digest: Of its tokenizer.
        facts: How it was made and how good it is: plain data.

    Raises:
        HeadwiseError: Numbers that make no probe.
    """

    heads: HeadSet
    weights: tuple[float, ...]
    bias: float
    threshold: float
    calibration: Platt
    band: tuple[float, float] = BAND
    shift: int = 0
    weights_digest: str = ""
    tokenizer_digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (*self.weights, self.bias, self.threshold, *self.calibration, *self.band)
        if not len(self.heads) or len(self.weights) != len(self.heads):
            raise HeadwiseError(f"a probe needs one weight per head; got {len(self.weights)} for {len(self.heads)} heads")
        if not all(type(number) is float and math.isfinite(number) for number in numbers):
            raise HeadwiseError("a probe's weights, bias, threshold, calibration and band must be finite numbers")
        if len(self.band) != 2 or not 0 <= self.band[0] <= self.band[1] <= 1:
            told = " and ".join(f"{number:g}" for number in self.band)
            raise HeadwiseError(f"the band of unsure tokens must be two probabilities in order; got {told}")
        if type(self.shift) is not int or abs(self.shift) > FARTHEST:
            raise HeadwiseError(f"the shift must be a whole number from -{FARTHEST} to {FARTHEST}; got {self.shift!r}")

    @property
    def model(self) -> str:
        """Name of the model it was made for."""
        return str(self.facts.get("model", "another model"))

    @property
    def linear(self) -> Linear:
        """Score of features [..., K], heads in the order of `heads`."""
        return Linear(np.array(self.weights), self.bias)

    def probability(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """[...] calibrated probability that a token was read, from features [..., K]."""
        return self.calibration.probability(self.linear.scores(features))

    def check(self, model: Model) -> None:
        """Refuse a model that the probe was not made for.

        Raises:
            HeadwiseError: Weights or tokenizer differ from those it was fitted on.
        """
        self.heads.check_fits(model.heads.shape, model.name, "the probe's heads")
        if self.tokenizer_digest != tokenizer_digest(model.tokenizer):
            raise HeadwiseError(
                f"this probe was made for the tokenizer of {self.model}, and {model.name} has another one; fit one with headwise trace fit"
            )
        if self.weights_digest != weights_digest(model.hf):
            raise HeadwiseError(
                f"this probe was made for {self.model}, and {model.name} has other weights (or another dtype); fit one with headwise trace fit"
            )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the file, whole or not at all.

        Raises:
            HeadFileError: It exists, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise HeadFileError(f"{path} exists; give another name or --overwrite (results are never merged)")
        write_atomically(path, (json.dumps(to_json(self), indent=1, allow_nan=False) + "\n").encode())


def to_json(probe: Probe) -> dict[str, Any]:
    """Plain JSON data with its seal."""
    data: dict[str, Any] = {
        "headwise_probe": SCHEMA,
        "shape": list(probe.heads.shape),
        "heads": [str(head) for head in probe.heads],
        "chosen_by": probe.heads.chosen_by,
        "calibration": {"kind": "platt", **probe.calibration._asdict()},
        **{name: value for name, value in asdict(probe).items() if name not in ("heads", "calibration")},
    }
    return data | {"seal": _seal(data)}


def load_probe(path: str | Path) -> Probe:
    """Read a probe's file.

    Raises:
        HeadFileError: It is missing, no probe, of a newer version, or was changed after it was written.
    """
    path = Path(path)
    if not path.exists():
        raise HeadFileError(f"no such probe: {path}; make one with headwise trace fit")
    data = read_json(path, "a probe", HeadFileError)
    if not isinstance(data, dict) or "headwise_probe" not in data:
        raise HeadFileError(f"{path} is no probe; make one with headwise trace fit")
    if data["headwise_probe"] != SCHEMA:
        raise HeadFileError(f"{path} has version {data['headwise_probe']!r}; this headwise reads {SCHEMA}; update headwise")
    seal = data.pop("seal", None)
    if seal != _seal(data):
        raise HeadFileError(f"{path} was changed after it was written (its seal does not fit); fit it again")
    try:
        layers, heads = data["shape"]
        calibration = data["calibration"]
        if calibration["kind"] != "platt":
            raise ValueError(f"unknown calibration {calibration['kind']!r}")
        return Probe(
            HeadSet.of(data["heads"], (layers, heads), data["chosen_by"]),
            tuple(data["weights"]),
            data["bias"],
            data["threshold"],
            Platt(calibration["slope"], calibration["offset"]),
            tuple(data["band"]),
            data["shift"],
            data["weights_digest"],
            data["tokenizer_digest"],
            _checked_facts(data["facts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadFileError(f"{path} is a broken probe ({reason(error)}); fit it again") from error


def shipped_probe(model: Model, folder: Any) -> Probe:
    """The probe that comes with headwise for a model, found by its weights.

    Args:
        model: The model.
        folder: Where the probes lie, as a folder or a resource of a package.

    Raises:
        HeadwiseError: None was made for it; the models that have one are named.
    """
    known = [load_probe(Path(str(entry))) for entry in sorted(folder.iterdir(), key=str) if entry.name.endswith(".json")]
    digest = weights_digest(model.hf) if known else ""
    for probe in known:
        if probe.weights_digest == digest:
            probe.check(model)
            return probe
    names = ", ".join(dict.fromkeys(probe.model for probe in known)) or "none yet"
    raise HeadwiseError(
        f"no probe for {model.name} comes with headwise (there are: {names}); make one with headwise trace fit and give --probe"
    )


def _checked_facts(facts: Any) -> dict[str, Any]:
    """Facts of which a page can show what it shows: anybody can seal a file.

    Raises:
        ValueError: What a page reads is of another kind than `headwise.methods.trace.fit` writes.
    """
    if not isinstance(facts, dict) or not isinstance(facts.get("options", {}), dict):
        raise ValueError("its facts are no object")
    areas = facts.get("auc") or {}
    rows = [row for row in areas.values() if row is not None] if isinstance(areas, dict) else [areas]
    if not all(isinstance(row, dict) and all(type(row.get(key)) is float for key in ("auc", "low", "high")) for row in rows):
        raise ValueError("its AUC are no numbers with intervals")
    return facts


def _seal(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
