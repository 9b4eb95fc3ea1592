"""Running one experiment after the other on a model, and writing what each finds."""

from __future__ import annotations

import importlib.metadata
import shutil
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headwise.claims.experiment import Bench, Experiment
from headwise.claims.ledger import digest
from headwise.claims.results import Result, as_read, read_result
from headwise.heads.errors import HeadwiseError
from headwise.heads.headfile import write_json
from headwise.heads.progress import Report, silent

if TYPE_CHECKING:
    from headwise.models.model import Model

LIBRARIES = ("headwise", "torch", "transformers")
WORK = "unfinished"
SHARED = "shared"  # below it, alone or with a number: what several experiments ask for
Step = tuple[str, str, Experiment]  # model, kind, experiment


def result_path(output: Path, model: str, experiment: str) -> Path:
    """Where a result is written."""
    from headwise.models.names import label

    return output / label(model).replace("/", "--") / f"{experiment}.json"


@dataclass
class Runner:
    """Runs single experiments. A model is loaded once for all that follow each other on it.

    Attributes:
        output: Folder of the results.
        load: Name -> model.
        replaced: Results that are written anew, and may be those of other weights.
        data: Folder of data sets.
        quick: Whether small versions are run.
        seed: Of everything that is drawn.
        shared: Name of the folder for what several experiments ask for; one process writes it at a time.
    """

    output: Path
    load: Callable[[str], Model]
    replaced: Collection[Path] = ()
    data: Path | None = None
    quick: bool = False
    seed: int = 0
    shared: str = SHARED
    _bench: Bench | None = field(default=None, init=False, repr=False)

    def run(self, step: Step, report: Report = silent) -> tuple[Result | None, str]:
        """Measure, and write the result.

        Returns:
            (result, ""), or (None, why the measurement failed).

        Raises:
            HeadwiseError: The model cannot be loaded, or results of other weights under its name are in the way.
        """
        model, kind, one = step
        path = result_path(self.output, model, one.name)
        options = ("-quick" if self.quick else "") + (f"-seed{self.seed}" if self.seed else "")  # work of other options is not gone on with
        work = path.parent / WORK / (one.name + options)
        bench = self._on(model, kind, path.parent)
        bench.work, bench.report = work, report
        try:
            result = _measured(one, bench)
            write_json(result.to_json(), path, overwrite=True)
            result = as_read(result)
        except Exception as error:  # a night's work is not lost for one fault of one experiment
            return None, f"{model} {one.name}: {_told(error, work)}"
        shutil.rmtree(work, ignore_errors=True)
        return result, ""

    def _on(self, model: str, kind: str, folder: Path) -> Bench:
        """The bench of a model, with the model loaded."""
        if self._bench is None or self._bench.name != model:
            self._bench = None  # the model before is let go first
            work = folder / WORK
            bench = Bench(model, kind, lambda: self.load(model), work, self.data, self.quick, self.seed, shared=work / self.shared)
            bench.model = self.load(model)  # outside of what may fail: without its model no experiment can be done
            self._check_weights(bench, folder)
            self._bench = bench
        return self._bench

    def _check_weights(self, bench: Bench, folder: Path) -> None:
        """Refuse to put results of two models that have one name beside each other."""
        for path in sorted(set(folder.glob("*.json")) - set(self.replaced)):
            if read_result(path).model.get("weights") != bench.weights:
                raise HeadwiseError(f"{path} was measured with other weights of a model of this name, or another --dtype; give another --output")


def clear(folders: Collection[Path]) -> None:
    """Remove what was shared from folders of unfinished work, where nothing else lies there."""
    for folder in folders:
        if folder.is_dir() and all(part.name.startswith(SHARED) for part in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def _told(error: Exception, work: Path) -> str:
    """What went wrong; the traceback of a fault of ours is kept."""
    if isinstance(error, HeadwiseError):
        return str(error)
    path = work / "traceback.txt"
    work.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{type(error).__name__}: {error} (see {path})"


def _measured(one: Experiment, bench: Bench) -> Result:
    from headwise.models.names import label

    measured = one.run(bench)
    model = bench.model
    about = {
        "name": label(bench.name),
        "kind": bench.kind,
        "layers": model.heads.shape[0],
        "heads": model.heads.shape[1],
        "positions": model.positions,
        "weights": bench.weights,
    }
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Result(one.name, digest(one), about, bench.quick, bench.seed, measured.findings, measured.details, versions)
