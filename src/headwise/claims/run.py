"""Running the ledger: model by model, cheapest experiment first; what is finished is kept, so the same command goes on."""

from __future__ import annotations

import importlib.metadata
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
SHARED = "shared"  # below it: what several experiments ask for
Step = tuple[str, str, Experiment]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        steps: (model, kind, experiment), in the order of running.
        done: Steps whose result is there.
        without: Experiments whose data sets were not given: name -> what is missing.
        quick: Whether small versions are run.
        beyond: Steps that the limit of hours leaves out.
    """

    steps: tuple[Step, ...]
    done: tuple[Step, ...]
    without: Mapping[str, str]
    quick: bool
    beyond: tuple[Step, ...] = ()

    @property
    def minutes(self) -> float:
        """Rough minutes on two cores."""
        return sum(_minutes(step, self.quick) for step in self.steps)

    def within(self, hours: float) -> Plan:
        """The cheapest steps of all models that fit into some rough hours, in the order of running; the others go to `beyond`."""
        kept: set[Step] = set()
        left = 60 * hours
        for step in sorted(self.steps, key=lambda step: _minutes(step, self.quick)):
            left -= _minutes(step, self.quick)
            if left < 0:
                break
            kept.add(step)
        return replace(self, steps=tuple(s for s in self.steps if s in kept), beyond=tuple(s for s in self.steps if s not in kept))


def _minutes(step: Step, quick: bool) -> float:
    _, kind, one = step
    return one.minutes.of(kind, quick) or 0.0


def kind_of(model: str) -> str:
    """`lab` for models that lie beside the recipe which trained them, `real` for all others."""
    from headwise.models.names import bundled_models

    folder = bundled_models().get(model, Path(model))
    return "lab" if (folder / "recipe.json").is_file() else "real"


def result_path(output: Path, model: str, experiment: str) -> Path:
    """Where a result is written."""
    from headwise.models.names import label

    return output / label(model).replace("/", "--") / f"{experiment}.json"


def plan(
    models: Sequence[str],
    experiments: Sequence[Experiment],
    output: Path,
    *,
    data: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    longest: float | None = None,
) -> Plan:
    """What running some experiments on some models would do.

    Args:
        models: Names, as `headwise.load` takes them.
        experiments: Of the ledger.
        output: Folder of the results.
        data: Folder of data sets.
        quick: Run small versions, and only experiments that have one.
        longest: Leave out experiments that take more minutes than that; None: none.
        seed: Of everything that is drawn.
        overwrite: Measure again what is there.

    Raises:
        HeadwiseError: A result of other options or of another version of the ledger is in the way; two models have one name.
    """
    from headwise.models.names import label

    labels = [label(model) for model in models]
    if len(set(labels)) < len(labels):
        raise HeadwiseError(f"models are told apart by their names, and these have one: {', '.join(models)}")
    absent = {one.name: [name for name in one.data if data is None or not (data / name).is_dir()] for one in experiments}
    steps: list[Step] = []
    done: list[Step] = []
    without: dict[str, str] = {}
    for model in models:
        kind = kind_of(model)
        fitting = [one for one in experiments if _fits(one.minutes.of(kind, quick), longest)]
        without |= {one.name: ", ".join(absent[one.name]) for one in fitting if absent[one.name]}
        measurable = [(model, kind, one) for one in fitting if not absent[one.name]]
        for _, _, one in sorted(measurable, key=lambda step: (_minutes(step, quick), step[2].name)):
            path = result_path(output, model, one.name)
            there = path.exists() and not overwrite
            if there:
                _check_same(read_result(path), one, quick, seed, path)
            (done if there else steps).append((model, kind, one))
    return Plan(tuple(steps), tuple(done), without, quick)


def _fits(minutes: float | None, longest: float | None) -> bool:
    return minutes is not None and (longest is None or minutes <= longest)


def _check_same(found: Result, one: Experiment, quick: bool, seed: int, path: Path) -> None:
    if found.digest != digest(one):
        raise HeadwiseError(f"{path} was measured with another version of the ledger; measure it again with --overwrite, or give another --output")
    if (found.quick, found.seed) != (quick, seed):
        raise HeadwiseError(f"{path} was measured with another --quick or --seed; give another --output, or --overwrite")


def run(
    planned: Plan,
    output: Path,
    *,
    load: Callable[[str], Model],
    data: Path | None = None,
    seed: int = 0,
    report: Report = silent,
    tell: Callable[[str, str, Result], Any] | None = None,
) -> list[Path]:
    """Run what was planned. After an interruption the same call goes on where it stopped, with the same bytes at the end.

    An experiment that fails does not stop the others.

    Args:
        planned: Of `plan`.
        output: Folder of the results.
        load: Name -> model.
        data: Folder of data sets.
        seed: Of everything that is drawn.
        report: Progress in rough minutes of all steps.
        tell: Called after each step with model, experiment and result.

    Returns:
        The files that were written.

    Raises:
        HeadwiseError: Results of other weights under the model's name are in the way. Or measurements failed; raised when all others are done.
    """
    written, failed = list[Path](), list[str]()
    total, passed = max(planned.minutes, 1e-9), 0.0
    bench: Bench | None = None
    options = ("-quick" if planned.quick else "") + (f"-seed{seed}" if seed else "")  # work of other options is not gone on with
    for model, kind, one in planned.steps:
        minutes, path = _minutes((model, kind, one), planned.quick), result_path(output, model, one.name)
        work = path.parent / WORK / (one.name + options)
        if bench is None or bench.name != model:
            bench = Bench(model, kind, lambda model=model: load(model), work, data, planned.quick, seed, shared=work.parent / SHARED)  # type: ignore[misc]
            bench.model = load(model)  # outside of what may fail: without its model no experiment can be done
            _check_weights(bench, path.parent, {result_path(output, model, step.name) for name, _, step in planned.steps if name == model})
        bench.work, bench.report = work, _share(report, passed, minutes, total, f"{model} {one.name}")
        report(passed, total, f"{model} {one.name}")
        passed += minutes
        try:
            result = _measured(one, bench)
            write_json(result.to_json(), path, overwrite=True)
            result = as_read(result)
        except Exception as error:  # a night's work is not lost for one fault of one experiment
            failed.append(f"{model} {one.name}: {_told(error, work)}")
            continue
        shutil.rmtree(work, ignore_errors=True)
        written.append(path)
        if tell is not None:
            tell(model, one.name, result)
    report(total, total, "")
    if failed:
        raise HeadwiseError(f"{len(failed)} of {len(planned.steps)} experiments failed; the same command tries them again: " + "; ".join(failed))
    _clear({path.parent / WORK for path in written})
    return written


def _check_weights(bench: Bench, folder: Path, replaced: set[Path]) -> None:
    """Refuse to put results of two models that have one name beside each other. replaced: what this run writes anew."""
    for path in sorted(set(folder.glob("*.json")) - replaced):
        if read_result(path).model.get("weights") != bench.weights:
            raise HeadwiseError(f"{path} was measured with other weights of a model of this name, or another --dtype; give another --output")


def _clear(folders: set[Path]) -> None:
    """Remove what was shared, where no other process works."""
    for folder in folders:
        if folder.is_dir() and not {part.name for part in folder.iterdir()} - {SHARED}:
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


def _share(report: Report, passed: float, minutes: float, total: float, name: str) -> Report:
    """Progress of one step as a part of all."""

    def told(done: float, whole: float, remark: str) -> None:
        share = min(done / whole, 1.0) if whole else 0.0
        report(passed + share * minutes, total, f"{name}: {remark}" if remark else name)

    return told
