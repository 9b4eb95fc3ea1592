"""`headwise detect [NAME] MODEL`: score every head of a model, by any detector that is installed.

The commands are made from the detectors themselves (entry points `headwise.detectors`): one option per field of a detector's class.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from headwise.cli import options as o
from headwise.cli.notes import tell_shared_places
from headwise.cli.options import installed, method_named
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError, MissingExtraError, NoSuccessfulRunError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.runtime.detector import Detector

DEFAULT = "copy"
HELP = f"""Find retrieval heads by one of the scores below; a head file and a heat map are written.

Without a NAME: {DEFAULT}. A model folder that is called like a score is given as ./NAME."""


class DetectGroup(TyperGroup):
    """The detectors as commands, made when they are asked for; what is no name of a detector is a model for the default one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the installed detectors, the default first."""
        return sorted(installed("detectors"), key=lambda name: (name != DEFAULT, name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a detector; None for another name."""
        if cmd_name not in installed("detectors"):
            return None
        app = typer.Typer(add_completion=False)
        try:
            app.command(cmd_name)(_command_of(cmd_name))
        except (HeadwiseError, MissingExtraError) as error:  # of another package: the others still work
            app.command(cmd_name, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(_broken(error))
        return typer.main.get_command(app)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default detector in front where none is named."""
        return super().parse_args(ctx, with_default(args))


app = typer.Typer(name="detect", help=HELP, cls=DetectGroup, subcommand_metavar="[NAME] [MODEL]")


@app.callback(help=HELP)
def detect() -> None:
    """Find retrieval heads."""


def with_default(args: list[str]) -> list[str]:
    """The words of the command with the name of a detector in front.

    Raises:
        HeadwiseError: A first word that can only be meant as the name of a detector, and is none.
    """
    first = args[0] if args else ""
    if first in ("-h", "--help") or first in installed("detectors"):
        return args
    if first and not first.startswith("-"):
        another = len(args) > 1 and not args[1].startswith("-")
        if another and args[1] in installed("detectors"):
            raise HeadwiseError(f"the detector comes before the model: headwise detect {args[1]} {first}")
        if another or (not Path(first).exists() and difflib.get_close_matches(first, installed("detectors"), cutoff=0.7)):
            method_named("detectors", first)
    return [DEFAULT, *args]


def _command_of(name: str) -> Callable[..., None]:
    """The function behind `headwise detect NAME`: its signature is made of the detector's fields."""
    kind: Any = method_named("detectors", name)
    summary = getattr(kind, "summary", None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(summary, str)):
        raise HeadwiseError(f"the detector {name!r} ({kind!r}) must be a dataclass with a text `summary`; see docs/add-a-detector.md")
    fields = o.parameters_of(kind)
    if taken := [field.name for field in fields if field.name in COMMON]:
        raise HeadwiseError(f"the detector {name!r} has a field {taken[0]!r}, a name that all commands use; choose another")

    def command(**given: Any) -> None:
        common = {option: given.pop(option) for option in COMMON}
        find_heads(o.made(kind, given), **common)

    parameters = [parameter("model"), *fields, *(parameter(option) for option in COMMON if option != "model")]
    return with_signature(command, parameters, str(summary))


def _broken(error: Exception) -> Callable[..., None]:
    def command() -> None:
        raise error

    return with_signature(command, [], " ".join(str(error).split()))


def with_signature(function: Callable[..., None], parameters: list[inspect.Parameter], text: str) -> Callable[..., None]:
    """The function as typer reads it: with these parameters and this help."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    function.__doc__ = text
    return function


def find_heads(
    detector: Detector,
    model: str | None,
    name: str | None,
    device: str,
    dtype: str,
    revision: str | None,
    output: Path | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Detect, write the head file and the heat map, and say what was found."""
    path = o.output_path(output, model, detector.name, overwrite)
    from headwise.runtime.detector import Run, run_detector

    loaded = o.load(model, device, dtype, revision, name)
    run = Run(path.with_name(path.name + ".run"))
    try:
        with progress("detecting", hidden=json) as run.report:
            scores = run_detector(loaded, detector, run)
    except NoSuccessfulRunError:
        if run.parts:
            run.parts.remove()
        raise
    _tell(scores, path, overwrite, json)
    if run.parts:
        run.parts.remove()


COMMON = tuple(inspect.signature(find_heads).parameters)[1:]
_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "model": (o.ModelName, None), "name": (o.Name, None), "device": (o.Device, "auto"), "dtype": (o.Dtype, "auto"),
    "revision": (o.Revision, None), "output": (o.Output, None), "overwrite": (o.Overwrite, False), "json": (o.Json, False),
}  # fmt: skip


def parameter(name: str) -> inspect.Parameter:
    """An option that all commands use, as typer reads it."""
    annotation, default = _OPTIONS[name]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _tell(scores: HeadScores, path: Path, overwrite: bool, json: bool) -> None:
    from headwise.heads.headfile import save_heads
    from headwise.report.console import print_all
    from headwise.report.heat_map import heat_map
    from headwise.report.tables import head_table, summary_lines

    picture = o.draw(partial(heat_map, scores), path.with_suffix(".heatmap.png"))
    save_heads(scores, path, overwrite)  # last: while it is missing, the same command goes on and draws the picture again
    if scores.provenance.get("shared_places"):
        tell_shared_places(scores.provenance)
    if json:
        from headwise.report.show import facts_of

        o.print_json({"head_file": str(path), "heat_map": picture, **facts_of(scores)})
    else:
        print_all(head_table(scores), *summary_lines(scores), f"head file  {path}", *o.picture_line(picture, "heat map"))
