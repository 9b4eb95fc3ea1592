"""Detectors: what scores the heads of a model. `find` runs any of them, of headwise or of another package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model
    from headwise.runtime.rundir import RunDirectory


@dataclass
class Run:
    """What a detector is given beside the model.

    Attributes:
        directory: Folder for finished parts, so that an interrupted run continues; None keeps nothing.
        report: `report(done, total, remark)` tells progress, in any unit.
        parts: The folder once `open` was called; its owner removes it when the result is safe.
    """

    directory: Path | None = None
    report: Report = silent
    parts: RunDirectory | None = field(default=None, init=False)

    def open(self, description: Mapping[str, Any]) -> RunDirectory | None:
        """The run directory for finished parts, or None if nothing is kept.

        Args:
            description: All that decides the result; a directory of a run with another description is refused.
        """
        if self.directory is not None:
            from headwise.runtime.rundir import RunDirectory

            self.parts = RunDirectory(self.directory, description)
        return self.parts


class Detector(Protocol):
    """A way to score heads: a frozen dataclass whose fields are its options, checked when it is made.

    Each field carries a line of help (`headwise.runtime.options.option`). The class must be cheap to import: torch is imported inside
    `find`. Registered under the entry point group `headwise.detectors`, it is a command: `headwise detect NAME`.

    Attributes:
        name: The score's name, and that of the command.
        summary: One line for `headwise detect --help`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def find(self, model: Model, run: Run) -> HeadScores:
        """Score all query heads of a model.

        Args:
            model: With its tokenizer.
            run: Where progress is told and finished parts are kept; the detector calls `run.open` if it can continue.

        Returns:
            Scores of the model's shape [L, H]; NaN where a head is not scored.

        Raises:
            HeadwiseError: The model, the data or the options do not allow a score.
        """


def find(model: Model, detector: Detector, *, directory: str | Path | None = None, report: Report = silent) -> HeadScores:
    """Score all query heads of a model.

    Args:
        model: From `headwise.load`, or `headwise.Model(hf, tokenizer)`.
        detector: Such as `headwise.Copy(lengths=[512], depths=5)`.
        directory: Folder for finished parts; the first call makes it, and the same call continues an interrupted run. It stays; delete it once
            the scores are saved.
        report: `report(done, total, remark)` tells progress.

    Returns:
        One score per query head, higher is stronger, NaN = not scored.

    Raises:
        HeadwiseError: What was given is no model or no detector, or the detector refuses the model or the data.
    """
    return run_detector(model, detector, Run(None if directory is None else Path(directory), report))


def run_detector(model: Model, detector: Detector, run: Run) -> HeadScores:
    """`find` for a caller who keeps the `Run`, to remove its parts when the result is safe.

    Args:
        model: As in `find`.
        detector: As in `find`.
        run: Of this call alone; `run.parts` is set if the detector keeps parts.

    Returns:
        As `find`.

    Raises:
        HeadwiseError: As `find`; also if a detector returns something else than scores of the model's shape.
    """
    _check_model(model)
    _check_detector(detector)
    from headwise.heads.types import HeadScores

    scores = detector.find(model, run)
    if not isinstance(scores, HeadScores):
        raise HeadwiseError(f"the detector {detector.name!r} returned {type(scores).__name__}, not HeadScores")
    if scores.shape != model.heads.shape:
        found, wanted = (f"{layers} layers x {heads} heads" for layers, heads in (scores.shape, model.heads.shape))
        raise HeadwiseError(f"the detector {detector.name!r} returned scores of {found}, but {model.name} has {wanted}")
    return scores


def _check_model(model: Any) -> None:
    from headwise.models.model import Model

    if isinstance(model, str | Path):
        raise HeadwiseError(f"{str(model)!r} is a name; load the model first: headwise.load({str(model)!r})")
    if not isinstance(model, Model):
        if hasattr(model, "config"):
            raise HeadwiseError(f"{type(model).__name__} comes without its tokenizer; give headwise.Model(hf, tokenizer)")
        raise HeadwiseError(
            f"{type(model).__name__} is no model; give one of headwise.load(NAME) or headwise.Model(hf, tokenizer)"
        )
    if model.tokenizer is None:
        raise HeadwiseError(f"the model {model.name} was wrapped without a tokenizer; give headwise.Model(hf, tokenizer)")


def _check_detector(detector: Any) -> None:
    example = "headwise.Copy(lengths=[512])"
    if isinstance(detector, type):
        raise HeadwiseError(f"{detector.__name__} is a class; give an instance of it, such as {detector.__name__}()")
    if not callable(getattr(detector, "find", None)) or not isinstance(getattr(detector, "name", None), str):
        raise HeadwiseError(f"{detector!r:.60} is no detector; give one such as {example}")
