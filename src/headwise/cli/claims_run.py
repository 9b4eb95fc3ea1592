"""`headwise claims run`: measure claims of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.notes import tell
from headwise.cli.progress import duration, progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.claims.results import Result
    from headwise.claims.run import Plan

REAL, LABS = "smollm2", ("world-6m", "lab-6m")
ALONE = "a machine that does nothing else: times are compared"
QUICK = 1.0  # rough minutes; the small versions of longer ones are run where these are asked for


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="A model to measure: a name, a folder or a hub id; may be given several times.",
            show_default="smollm2 and a lab model",
        ),
    ] = None,
    card: Annotated[list[str] | None, typer.Option("--card", help="Claims of this method card; may be given several times.")] = None,
    claim: Annotated[list[str] | None, typer.Option("--claim", help="The experiment that answers this claim, beside other choices.")] = None,
    experiment: Annotated[list[str] | None, typer.Option("--experiment", help="This experiment, beside other choices.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small versions of what was chosen, or of all that takes about a minute each; marked as quick.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of data sets; experiments without theirs are left out.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; finished ones stay.")] = Path("headwise-out/claims"),
    hours: Annotated[
        float | None, typer.Option(help="Leave out the longest experiments, so that the rest takes about so many hours.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at once, in processes of their own that share the cores.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run and how long it takes, then stop.")] = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Measure claims, the cheapest experiments first. An interrupted run goes on with the same command, and ends with the same bytes."""
    from headwise.claims import ledger
    from headwise.claims import run as runs

    _check(output, data, hours)
    models = model or _default_models()
    _check_models(models)
    chosen = ledger.chosen(card or (), claim or (), experiment or ())
    longest = QUICK if quick and not (card or claim or experiment) else None
    sizes = _sizes(models, device)
    planned = runs.plan(models, chosen, output, data=data, quick=quick, seed=seed, overwrite=overwrite, longest=longest, sizes=sizes)
    planned = planned if hours is None else planned.within(hours, jobs)
    if plan:
        _tell_plan(planned, jobs, json)
        return
    _announce(planned, jobs)
    found: list[Result] = []

    def done(name: str, key: str, result: Result) -> None:
        found.append(result)
        if not json:
            _print_step(name, key, _told([result], output))

    with progress("measuring", hidden=json) as report:
        load = partial(o.load, device=device, dtype=dtype, kept=o.shared())
        written = runs.run(planned, output, load=load, data=data, seed=seed, report=report, tell=done, jobs=jobs)
    if json:
        o.print_json({"result": str(output), "written": [str(path) for path in written], "claims": _told(found, output)})
        return
    typer.echo(f"result     {output} (headwise claims show {output} --html claims.html)")


def _sizes(models: Sequence[str], device: str) -> dict[str, float]:
    """How many times the declared minutes the models take, where that is known: on a CPU, of models that are here."""
    from headwise.claims.run import size_of
    from headwise.models.load import resolve_device

    if resolve_device(device).startswith("cuda"):
        return {}
    return {model: size for model in models if (size := size_of(model)) is not None}


def _announce(planned: Plan, jobs: int) -> None:
    """Say what will be done; refuse if it is nothing."""
    for line in _lines(planned, jobs):
        tell(line)
    if not (planned.steps or planned.done):
        raise HeadwiseError("nothing to run: no chosen experiment is for these models" + (" and has its data" if planned.without else ""))


def _check(output: Path, data: Path | None, hours: float | None) -> None:
    """Refuse before any work is done."""
    if hours is not None and not hours > 0:
        raise HeadwiseError(f"--hours must be above 0; got {hours:g}")
    if output.exists() and not output.is_dir():
        raise HeadwiseError(f"{output} is a file; give a folder with --output")
    o.check_file(output / "result", "--output")
    if data is not None and not data.is_dir():
        raise HeadwiseError(f"there is no folder {data}; give the folder of the data sets with --data")


def _check_models(models: Sequence[str]) -> None:
    """Refuse a model that is not there, before hours of work on the others."""
    from headwise.models.checkpoint import fault_of
    from headwise.models.names import folder_of
    from headwise.models.registry import entry_named

    for name in models:
        if entry_named(name) is None and not _is_gguf(Path(name)):
            folder = folder_of(name, offline=bool(o.shared("offline").get("offline")))
            fault = None if folder is None or any(folder.glob("*.gguf")) else fault_of(folder, weights=False)
            if fault:
                raise HeadwiseError(f"{name!r} is no model: {fault}")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _default_models() -> list[str]:
    """The real model, and the first lab model that is here."""
    from headwise.models.names import bundled_models

    here = bundled_models()
    return [REAL, *[name for name in LABS if name in here][:1]]


def _lines(planned: Plan, jobs: int) -> list[str]:
    """What will be done, in words."""
    steps = len(planned.steps)
    rough = f"about {duration(60 * planned.minutes(jobs))} on two CPU cores"
    unknown = list(dict.fromkeys(model for model, _, _ in planned.steps if model not in planned.sizes))
    rough += f" (for {', '.join(unknown)}: what a model of {REAL}'s size takes there)" if unknown else ""
    lines = [f"{steps} experiment{'s' if steps > 1 else ''}, {rough}"] if steps else []
    if planned.done:
        lines.append(f"{len(planned.done)} experiments are done already and are left as they are")
    if planned.beyond:
        names = ", ".join(dict.fromkeys(one.name for _, _, one in planned.beyond))
        lines.append(f"left out because of --hours: {names}")
    if planned.without:
        missing = sorted({name for names in planned.without.values() for name in names.split(", ")})
        lines.append(f"left out, as --data does not hold {', '.join(missing)}: {', '.join(sorted(planned.without))}")
    return lines


def _tell_plan(planned: Plan, jobs: int, json: bool) -> None:
    rows = [
        {
            "model": model, "experiment": one.name, "claims": len(one.claims), "minutes": planned.minutes_of((model, kind, one)),
            "data": list(one.data), "needs": ALONE if one.alone else one.needs,
        }
        for model, kind, one in planned.steps
    ]  # fmt: skip
    if json:
        beyond = [{"model": model, "experiment": one.name} for model, _, one in planned.beyond]
        told = {"steps": rows, "minutes": planned.minutes(jobs), "done": len(planned.done), "without_data": dict(planned.without), "beyond": beyond}
        o.print_json(told)
        return
    from headwise.report.claims_tables import plan_table
    from headwise.report.console import print_all

    print_all(plan_table(rows), *_lines(planned, jobs))


def _told(found: Sequence[Result], output: Path) -> list[dict[str, Any]]:
    """Rows of some results, with families corrected over all that has been measured of their models, as `headwise claims show` does."""
    from headwise.claims.results import read_results, rows
    from headwise.claims.runner import result_path

    asked = {(str(one.model["name"]), one.experiment) for one in found}
    folders = {result_path(output, name, key).parent for name, key in asked}
    every = read_results(sorted(folders)) if folders else []
    return [row.to_json() for row in rows(every) if (row.model, row.experiment) in asked]


def _print_step(name: str, key: str, told: list[dict[str, Any]]) -> None:
    from headwise.report.claims_tables import claims_table, counts_line
    from headwise.report.console import print_all

    print_all(claims_table(f"{name}: {key}", told), counts_line(told))
