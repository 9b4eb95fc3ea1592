"""Running the ledger: model by model, cheapest experiment first; what is finished is kept, so the same command goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.claims.experiment import Experiment
from headwise.claims.jobs import Progress, side_by_side
from headwise.claims.ledger import digest
from headwise.claims.results import Result, read_result
from headwise.claims.runner import WORK, Runner, Step, clear, result_path
from headwise.heads.errors import HeadwiseError
from headwise.heads.files import work_is_done, work_is_kept
from headwise.heads.progress import Report, silent

if TYPE_CHECKING:
    from headwise.models.model import Model

SHARE = 0.74  # of the time, for several experiments at once on two cores: the quick run of smollm2 and world-6m
LEAST_SIZE = 0.25  # of a model's minutes: what does not shrink with its parameters


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        steps: (model, kind, experiment), in the order of running.
        done: Steps whose result is there.
        without: Experiments whose data sets were not given: name -> what is missing.
        quick: Whether small versions are run.
        beyond: Steps that the limit of hours leaves out.
        sizes: Model -> how many times the declared minutes it takes, see `size_of`; a model that is not here takes these.
    """

    steps: tuple[Step, ...]
    done: tuple[Step, ...]
    without: Mapping[str, str]
    quick: bool
    beyond: tuple[Step, ...] = ()
    sizes: Mapping[str, float] = field(default_factory=dict)

    def minutes(self, jobs: int = 1) -> float:
        """Rough minutes of all on two cores, with so many steps at once."""
        return sum(self.minutes_of(step, jobs) for step in self.steps)

    def minutes_of(self, step: Step, jobs: int = 1) -> float:
        """Rough minutes of one step on two cores; with several jobs what it adds to those of all."""
        share = SHARE if jobs > 1 and not step[2].alone else 1.0
        return share * _minutes(step, self.quick) * self.sizes.get(step[0], 1.0)

    def within(self, hours: float, jobs: int = 1) -> Plan:
        """The cheapest steps of all models that fit into some rough hours, in the order of running; the others go to `beyond`."""
        kept: set[Step] = set()
        left = 60 * hours
        for step in sorted(self.steps, key=self.minutes_of):
            left -= self.minutes_of(step, jobs)
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


def size_of(model: str) -> float | None:
    """How many times the declared minutes a model takes on a CPU, where reading tokens takes most of the time.

    Returns:
        Its parameters, as a share of those of the model that the minutes were measured with; at least a quarter. None: they are not known before
        it is loaded.
    """
    from headwise.models.checkpoint import parameters_in
    from headwise.models.names import bundled_models
    from headwise.models.registry import LAB_MODELS, SMOLLM2, entry_named

    entry, folder = entry_named(model), bundled_models().get(model, Path(model))
    parameters = entry.parameters if entry is not None else parameters_in(folder)
    base = LAB_MODELS["world-6m"].parameters if kind_of(model) == "lab" else SMOLLM2.parameters
    return None if parameters is None else max(parameters / base, LEAST_SIZE)


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
    sizes: Mapping[str, float] | None = None,
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
        sizes: Model -> how many times the declared minutes it takes.

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
    return Plan(tuple(steps), tuple(done), without, quick, sizes=dict(sizes or {}))


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
    jobs: int = 1,
) -> list[Path]:
    """Run what was planned. After an interruption the same call goes on where it stopped, with the same bytes at the end.

    An experiment that fails does not stop the others.

    Args:
        planned: Of `plan`.
        output: Folder of the results.
        load: Name -> model; with several jobs a function that can be pickled.
        data: Folder of data sets.
        seed: Of everything that is drawn.
        report: Progress in rough minutes of all steps.
        tell: Called after each step with model, experiment and result.
        jobs: Processes side by side, see `headwise.claims.jobs`.

    Returns:
        The files that were written.

    Raises:
        HeadwiseError: Results of other weights under the model's name are in the way. Or measurements failed; raised when all others are done.
    """
    written, failed = list[Path](), list[str]()
    progress = Progress(report, {step: planned.minutes_of(step) for step in planned.steps})
    replaced = {result_path(output, model, one.name) for model, _, one in planned.steps}

    def ended(step: Step, result: Result | None, fault: str) -> None:
        progress.end(step)
        if result is None:
            failed.append(fault)
            return
        work_is_kept(output)
        written.append(result_path(output, step[0], step[2].name))
        if tell is not None:
            tell(step[0], step[2].name, result)

    runner = Runner(output, load, replaced, data, planned.quick, seed)
    beside = [step for step in planned.steps if not step[2].alone] if jobs > 1 else []
    if beside:
        work_is_kept(output)  # by the processes
        side_by_side(runner, beside, jobs, progress, ended)
    for step in planned.steps:
        if step not in beside:
            ended(step, *runner.run(step, progress.of(step)))
    report(progress.total, progress.total, "")
    work_is_done(output)
    if failed:
        raise HeadwiseError(f"{len(failed)} of {len(planned.steps)} experiments failed; the same command tries them again: " + "; ".join(failed))
    clear({path.parent / WORK for path in written})
    return written
