"""`--trust-remote-code`, on every command that takes a model, in one place: also on those of other packages."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

HELP = "Run Python code that comes with the model."
_allowed = False


def allowed() -> bool:
    """Whether the command that is running was given `--trust-remote-code`."""
    return _allowed


class Root(TyperGroup):
    """The root of all commands, which gives the option to those that take a model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _give(self)


def _give(command: Any) -> Any:
    """Add the option to a command that takes a model; to those of a group, also where the group makes them when they are asked for."""
    if isinstance(command, TyperGroup):
        for below in command.commands.values() if type(command.commands) is dict else ():
            _give(below)
        group: Any = command
        group.get_command = _giving(command.get_command)
    elif command is not None:
        names = {parameter.name for parameter in command.params}
        if "model" in names and "allow" not in names:
            command.params.append(_option())
    return command


def _giving(get_command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: _give(get_command(*given))


@cache
def _option() -> Any:
    """The option as typer makes it, taken from a command that has no other."""

    def command(allow: Annotated[bool, typer.Option("--trust-remote-code", help=HELP, callback=_set)] = False) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command()(command)
    (option,) = typer.main.get_command(app).params
    option.expose_value = False  # `_set` keeps it; the command's function has no such argument
    return option


def _set(value: bool) -> None:
    global _allowed
    _allowed = value
