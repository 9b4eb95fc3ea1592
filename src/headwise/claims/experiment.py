"""An experiment: the claims that one measurement answers, what it costs, and what the measurement is given."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.claims.claim import Claim, Finding
from headwise.heads.errors import HeadwiseError, TooLongError
from headwise.heads.progress import Report, silent

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.detector import Detector
    from headwise.runtime.rundir import RunDirectory

COSTS = {"seconds": 1.0, "minutes": 15.0, "hours": float("inf")}  # class -> largest number of minutes on two cores


class NotTestable(HeadwiseError):
    """Raised by a measurement: none of its claims can be tested on this model or with this data; the text says what would be needed."""


@dataclass(frozen=True)
class Measured:
    """What a measurement returns.

    Attributes:
        findings: Key -> finding, one per claim of the experiment.
        details: Tables behind them for pages, as plain data; without times, so that the same run gives the same bytes.
    """

    findings: Mapping[str, Finding]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Minutes:
    """Rough minutes on two cores, by kind of model; None: the experiment is not for that kind.

    Attributes:
        lab: A lab model of 6M parameters.
        real: `smollm2` (135M parameters); others scale with their parameters.
        quick_lab: The small version.
        quick_real: The small version.
    """

    lab: float | None
    real: float | None
    quick_lab: float | None = None
    quick_real: float | None = None

    def of(self, kind: str, quick: bool) -> float | None:
        """Minutes for a kind of model; of the small version if there is one and `quick` asks for it; None: not for it."""
        whole = self.lab if kind == "lab" else self.real
        small = self.quick_lab if kind == "lab" else self.quick_real
        return small if quick else whole


@dataclass(frozen=True)
class Experiment:
    """Claims that are measured together.

    Attributes:
        name: Letters, digits, hyphens; the name of the result file.
        title: A line for lists.
        claims: What it answers.
        measure: `package.module:function`, imported when it is run; it takes a `Bench` and returns `Measured`.
        minutes: What it costs.
        data: Folders below `--data` that it needs.
        needs: What a model or machine must have beyond that, in words; empty: nothing.
        alone: Whether it compares times, so that nothing may run beside it.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    measure: str
    minutes: Minutes
    data: tuple[str, ...] = ()
    needs: str = ""
    alone: bool = False

    def run(self, bench: Bench) -> Measured:
        """Measure; what cannot be tested is a finding, too.

        Raises:
            HeadwiseError: The measurement does not answer its claims.
        """
        module, _, name = self.measure.partition(":")
        measure: Callable[[Bench], Measured] = getattr(importlib.import_module(module), name)
        try:
            bench.check_data(self.data)
            measured = measure(bench)
        except (NotTestable, TooLongError) as why:
            measured = Measured({claim.key: Finding.none(str(why)) for claim in self.claims})
        absent = [claim.key for claim in self.claims if claim.key not in measured.findings]
        if absent or len(measured.findings) > len(self.claims):
            raise HeadwiseError(f"the experiment {self.name} does not answer exactly its claims; missing: {', '.join(absent) or 'none'}")
        for claim in self.claims:
            measured.findings[claim.key].check(claim)
        return measured


@dataclass
class Bench:
    """What a measurement is given.

    Attributes:
        name: Of the model, as `headwise.load` takes it.
        kind: `lab` or `real`.
        load: Loads the model.
        work: Folder for finished parts, so that a killed run goes on.
        data: Folder of data sets; None: none was given.
        quick: Whether the small version is asked for.
        seed: Of everything that is drawn.
        report: Progress.
        shared: Folder for what several experiments ask for, such as scores of heads; None: each experiment keeps its own below `work`.
    """

    name: str
    kind: str
    load: Callable[[], Model]
    work: Path
    data: Path | None = None
    quick: bool = False
    seed: int = 0
    report: Report = silent
    shared: Path | None = None

    @property
    def real(self) -> bool:
        """Whether the model is no lab model."""
        return self.kind == "real"

    @cached_property
    def model(self) -> Model:
        """The model, loaded once; a measurement must leave it as it was. Trainings call `load` for one of their own."""
        return self.load()

    @cached_property
    def weights(self) -> str:
        """Names the values and the type of the model's weights, so that no part of another model of the same name is taken for one of this."""
        from headwise.models.fingerprint import weights_digest

        return weights_digest(self.model.hf)

    def pick(self, whole: Any, quick: Any) -> Any:
        """A size: `quick` in the small version, else `whole`."""
        return quick if self.quick else whole

    def folder(self, name: str) -> Path:
        """The folder of a data set.

        Raises:
            NotTestable: It is not there.
        """
        if self.data is None:
            raise NotTestable(f"needs the data set {name}: give its parent folder with --data")
        if not (self.data / name).is_dir():
            raise NotTestable(f"needs the data set {name}, which is not in {self.data.name}")
        return self.data / name

    def check_data(self, names: tuple[str, ...]) -> None:
        """Raise `NotTestable` unless all data sets are there."""
        for name in names:
            self.folder(name)

    def cells(self, part: str, description: Mapping[str, Any]) -> RunDirectory:
        """Where a part keeps its finished cells, see `headwise.runtime.rundir`."""
        from headwise.runtime.rundir import RunDirectory

        return RunDirectory(self.work / part, self._asked(description))

    def shared_cells(self, part: str, description: Mapping[str, Any]) -> RunDirectory:
        """As `cells`, for a part that other experiments ask for with the same description: they find it finished."""
        from headwise.runtime.rundir import RunDirectory

        asked = self._asked(description)
        return RunDirectory(self._shared(part, json.dumps(asked, sort_keys=True, default=str)), asked)

    def find(self, detector: Detector) -> HeadScores:
        """Scores of the model's heads. Experiments that ask for the same ones share them; an interrupted search goes on.

        Raises:
            HeadwiseError: See `headwise.find`.
        """
        from headwise.runtime.detector import find

        return find(self.model, detector, directory=self._shared(detector.name, repr(detector)), report=self.report)

    def _asked(self, description: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.name, "weights": self.weights, "quick": self.quick, "seed": self.seed} | dict(description)

    def _shared(self, part: str, description: str) -> Path:
        told = f"{self.name}: {description}"  # experiments on several models share one folder
        return (self.shared or self.work / "shared") / f"{part}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
