"""What commands share: options, what these are turned into, and how results are printed and drawn."""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

from headwise.cli.notes import hold, tell
from headwise.heads.errors import HeadwiseError, MissingExtraError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model

ModelName = Annotated[
    str | None,
    typer.Argument(
        help="A name of `headwise models list`, a folder, a GGUF file, or a hub id. Default: the bundled lab model.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the model in results.", show_default="its hub id, or the name of its folder")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16 (auto: float32 on a CPU, as saved elsewhere).")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)]
Lengths = Annotated[
    str | None, typer.Option(help="Context lengths in tokens, e.g. 512,1024. Default: three that fit.", show_default=False)
]
Depths = Annotated[int, typer.Option(help="Number of evenly spaced depths.")]
Windows = Annotated[int, typer.Option(help="Haystack windows per needle and length.")]
Needles = Annotated[
    Path | None,
    typer.Option(
        help="JSON lines with needle, question, answer and, if wanted, answer_prefix; or a bundled set: detect, test, paraphrased, literal.",
        show_default="the bundled ones",
    ),
]
Haystack = Annotated[
    Path | None, typer.Option(help="Folder of .txt/.md files (.gz too).", show_default="three public-domain books")
]
Template = Annotated[str | None, typer.Option(help="Prompt with {context}, {question}, {answer_prefix}.", show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")]
ChatArgs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-args",
        help="Variables for the chat template as JSON, e.g. '{\"enable_thinking\": true}' (thinking is off by default).",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all that is drawn: windows, orders, controls.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write the result.", show_default="headwise-out/...")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

# Methods: of headwise, and of any other package that registers an entry point. A class is imported when it is asked for.
GROUPS = {"detectors": "headwise.detectors", "presses": "headwise.presses", "tasks": "headwise.tasks", "choosers": "headwise.choosers"}
GROUPS["checkers"] = "headwise.checkers"
WORDS = {"detectors": "detector", "presses": "cache method", "tasks": "task", "choosers": "chooser", "checkers": "checker"}
LONGEST = 200  # bytes of the name of a file; systems take 255, and files beside it have longer names
_shared: dict[str, Any] = {}  # arguments of `headwise.load` that every command with a model takes; of the running command


@cache
def installed(kind: str) -> dict[str, EntryPoint]:
    """Name -> entry point of every installed method of a kind (a key of `GROUPS`), our own first."""
    found = sorted(entry_points(group=GROUPS[kind]), key=lambda entry: (not entry.value.startswith("headwise."), entry.name))
    return {entry.name: entry for entry in reversed(found)}  # a name of ours is never taken over by another package


def method_named(kind: str, name: str) -> Any:
    """The class registered under a name.

    Raises:
        HeadwiseError: No such method, with the nearest names; or its package cannot be imported.
    """
    known = installed(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known) or sorted(known)
        raise HeadwiseError(f"unknown {WORDS[kind]} {name!r}; use {', '.join(near)}")
    try:
        return known[name].load()
    except MissingExtraError:
        raise
    except (ImportError, AttributeError) as error:
        raise HeadwiseError(f"the method {name!r} ({known[name].value}) cannot be imported: {error}") from error


class Root(TyperGroup):
    """The root of all commands, which gives the options of `headwise.load` to those that take a model, also to those of other packages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _give(self)


def _give(command: Any) -> Any:
    """Add the options to a command that takes a model; to those of a group, also where the group makes them when they are asked for."""
    if isinstance(command, TyperGroup):
        for below in command.commands.values() if type(command.commands) is dict else ():
            _give(below)
        group: Any = command
        if "get_command" not in vars(group):  # asked for before
            group.get_command = _giving(command.get_command)
    elif command is not None:
        names = {parameter.name for parameter in command.params}
        if "model" in names:
            command.params += [option for option in _options() if option.name not in names]
    return command


def _giving(get_command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: _give(get_command(*given))


@cache
def _options() -> list[Any]:
    """The options as typer makes them, taken from a command that has no others."""

    def command(
        trust_remote_code: Annotated[bool, _kept("--trust-remote-code", "Run Python code that comes with the model.")] = False,
        gguf_file: Annotated[str | None, _kept("--gguf-file", "The GGUF file to load from the folder or the hub's model.")] = None,
        packed: Annotated[bool, _kept("--packed", "Keep quantized weights packed where they could be unpacked, or refuse.")] = False,
        adapter: Annotated[str | None, _kept("--adapter", "Folder or hub id of an adapter of peft to put on the model.")] = None,
        offline: Annotated[bool, _kept("--offline", "Fetch nothing: use models that are here, or refuse.")] = False,
    ) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command()(command)
    made = typer.main.get_command(app).params
    for option in made:
        option.expose_value = False  # `_keep` has it; the command's function has no such argument
    return made


def _kept(words: str, meaning: str) -> Any:
    return typer.Option(words, help=meaning, callback=_keep, show_default=False)


def _keep(parameter: typer.CallbackParam, value: Any) -> None:
    _shared[str(parameter.name)] = value


def shared(*names: str) -> dict[str, Any]:
    """Those of the options that every command with a model takes which are needed where the model is not loaded: name -> value; all without names."""
    return {name: _shared[name] for name in names or _shared if name in _shared}


def load(
    model: str | None, device: str, dtype: str, revision: str | None = None, name: str | None = None, *, heads: Any = None, kept: Any = None
) -> Model:
    """Load the model, quietly; a bundled one by its name, and without a name the default.

    name: What results call it. heads: What it will run with; said if they were found in another model, see `tell_other_model`. kept: Options of the
    command (`shared`), in a process that has none.
    """
    from headwise.models.names import DEFAULT

    loaded = loaded_quietly(DEFAULT if model is None else model, device, dtype, revision, **(_shared if kept is None else kept))
    if name is None and Path(loaded.name).is_absolute():
        name = Path(loaded.name).name  # where a folder lies on this machine is nobody's business
    loaded = loaded if name is None else dataclasses.replace(loaded, name=name)
    tell_other_model(heads, loaded)
    return loaded


def loaded_quietly(name: str, device: str, dtype: str, revision: str | None, **options: Any) -> Model:
    """A model without a word of transformers. options: go to `headwise.load`; those of the command are in `shared`."""
    from transformers.utils import logging

    from headwise.models.load import load as load_model
    from headwise.models.names import bundled_models

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name not in bundled_models():
        bring(name, bool(options.get("offline")))
    return load_model(name, device, dtype, revision, **options)


def bring(name: str, offline: bool = False) -> Path | None:
    """The folder of a registered model, fetched with a progress bar where it is missing; None for any other name."""
    from headwise.cli.progress import progress
    from headwise.models.fetch import fetched, present
    from headwise.models.registry import entry_named

    entry = entry_named(name)
    if entry is None:
        return None
    with progress(f"fetching {entry.name}", hidden=offline or present(entry) is not None) as report:
        return fetched(entry, offline, report)


def numbers(text: str, name: str, repeats: bool = False) -> tuple[int, ...]:
    """Positive whole numbers separated by commas; each once unless `repeats`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise HeadwiseError(f"--{name} takes positive whole numbers separated by commas, like 1,2,4; got {text!r}")
    found = [int(part) for part in parts]
    return tuple(found if repeats else dict.fromkeys(found))


def parameters_of(kind: type) -> list[inspect.Parameter]:
    """Command-line options of a dataclass of options: one per field, with the field's help and default.

    Fields may hold `bool` (a switch), `int`, `float`, `str`, a path, or several whole numbers (written 512,1024), each or None. A field of
    another type that has a default is left to Python.

    Raises:
        HeadwiseError: A field without a default that cannot be written on a command line.
    """
    return [made for field in dataclasses.fields(kind) if (made := _parameter(kind, field)) is not None]


def made(kind: Any, given: Mapping[str, Any]) -> Any:
    """The options that were given, as an instance of their class."""
    several = {field.name for field in dataclasses.fields(kind) if _kind_of(kind, field) is Sequence}
    return kind(
        **{
            name: numbers(value, name.replace("_", "-")) if name in several and value is not None else value
            for name, value in given.items()
        }
    )


def _parameter(kind: type, field: dataclasses.Field[Any]) -> inspect.Parameter | None:
    wanted, required = _kind_of(kind, field), field.default is dataclasses.MISSING
    if wanted is None:
        if required and field.default_factory is dataclasses.MISSING:
            raise HeadwiseError(f"{kind.__name__} needs {field.name}, which cannot be given on a command line")
        return None
    words = "--" + field.name.replace("_", "-")
    on_and_off = f"{words}/--no-{words[2:]}" if wanted is bool and field.default else words
    shown = field.metadata.get("shown") or field.default is not None
    hint: Any = str | None if wanted is Sequence else wanted if field.default is not None else wanted | None
    option = typer.Option(on_and_off, help=field.metadata.get("help"), show_default=shown)
    default = ... if required else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def _kind_of(kind: type, field: dataclasses.Field[Any]) -> Any:
    """What is written for a field: bool, int, float, str, Path, Sequence (of whole numbers), or None."""
    hint = _hint(kind, field)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(get_origin(one) in (Sequence, list, tuple) and get_args(one)[0] is int for one in kinds):
        return Sequence
    return next((known for known in (Path, bool, int, float, str) if known in kinds), None)


class _Names(dict[str, Any]):
    """Names of a module; one that is imported for type checkers only stands for anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _hint(kind: type, field: dataclasses.Field[Any]) -> Any:
    if not isinstance(field.type, str):
        return field.type
    home = next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
    return eval(field.type, {"__builtins__": {}}, _Names(vars(sys.modules[home.__module__])))


def output_path(
    output: Path | None, model: str | None, kind: str, overwrite: bool, end: str = ".json", html: Path | None = None
) -> Path:
    """Where to write; refused before any work is done as by `check_file`, as is a page that is written beside it."""
    from headwise.models.names import DEFAULT, label

    name = DEFAULT if model is None else Path(label(model)).name or "model"
    if html is not None:
        check_file(html, "--html")
    return check_file(output or Path("headwise-out") / f"{name}.{kind}{end}", "--output", overwrite)


def check_file(path: Path, option: str, overwrite: bool = True) -> Path:
    """The path itself; a file that could not be written, or must not be replaced, is refused. option: that it was given with, for the message."""
    if os.path.isdir(path):  # unlike methods of Path these take a name that is too long for one that does not exist
        raise HeadwiseError(f"{path} is a folder; give a file name with {option}")
    if os.path.exists(path) and not overwrite:
        raise HeadwiseError(f"{path} exists; give another {option} or --overwrite (results are never merged)")
    return _in_writable_folder(path, option)


def check_new_folder(path: Path, option: str) -> Path:
    """The path itself; a folder that holds something or could not be made, or a file in its place, is refused."""
    if os.path.exists(path) and (not os.path.isdir(path) or any(path.iterdir())):
        raise HeadwiseError(f"{path} exists and is not an empty folder; give a new one to {option}")
    return _in_writable_folder(path, option)


def _in_writable_folder(path: Path, option: str) -> Path:
    if len(os.fsencode(path.name)) > LONGEST:
        raise HeadwiseError(f"cannot write {path}: its name has more than {LONGEST} bytes; give another {option}")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise HeadwiseError(f"cannot write {path}: {folder} is not a folder that can be written to; give another {option}")
    return path


def refuse_unused(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options on the command line that would change nothing.

    Args:
        context: Of the running command.
        names: Names of the command's parameters.
        reason: Why they change nothing, and what to do; it stands behind the option's name.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise HeadwiseError(f"--{name.replace('_', '-')} {reason}")


def read_scores(file: Path) -> HeadScores:
    """The scores of a head file. A missing file is answered with those that lie near."""
    from headwise.heads.headfile import load_heads

    if not file.exists():
        folders = dict.fromkeys((file.parent, Path("headwise-out")))
        known = {path.name: str(path) for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))}
        near = [known[name] for name in difflib.get_close_matches(file.name, known, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else "make one with headwise detect"
        raise HeadwiseError(f"no such head file: {file}; {hint}")
    return load_heads(file)


def tell_other_model(scores: Any, model: Model) -> None:
    """Say that heads were found in another model than the one that runs, by the names of both; one of the same shape is never refused.

    It is said when the first piece of work is done, so that a command which ends in an error says that error alone.

    Args:
        scores: `HeadScores`; anything else (no heads, or a choice of them) tells nothing.
        model: The one that runs.
    """
    from headwise.models.names import names_of

    made = getattr(scores, "provenance", {}).get("model")
    if isinstance(made, str) and Path(made).name and Path(made).name.lower() not in names_of(model):
        hold(f"these heads were found in {made}, and {model.name} runs; heads of another model rarely have the same work")


def print_json(data: Any) -> None:
    """One JSON object on standard output."""
    import json

    typer.echo(json.dumps(data, allow_nan=False))


def can_draw() -> bool:
    """Whether pictures can be drawn; if not, one line on standard error says what to install."""
    from headwise.report.canvas import require_matplotlib

    try:
        require_matplotlib()
    except MissingExtraError as error:
        tell(f"no picture is drawn: {error}")
        return False
    return True


def draw(write: Callable[[Path], None], path: Path) -> str | None:
    """Write the picture of a result that stands without it.

    Args:
        write: draws and writes, such as `headwise.report.heat_map.heat_map` with its data.
        path: of the picture.

    Returns:
        The path as text, or None if the extra `report` is not installed.
    """
    if not can_draw():
        return None
    write(path)
    return str(path)


def picture_line(picture: str | None, name: str = "picture") -> list[str]:
    """The line that tells where the picture is; none without one."""
    return [] if picture is None else [f"{name:<10} {picture}"]
