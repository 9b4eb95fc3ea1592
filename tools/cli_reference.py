"""Write docs/cli.md from the commands themselves.

python tools/cli_reference.py            # writes docs/cli.md
python tools/cli_reference.py --check    # status 1 if the page differs from the commands
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
KINDS = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH", bool: ""}
HEAD = """# Command line

<!-- Written by tools/cli_reference.py from the commands; do not edit by hand. -->

Every command answers `--help`. Wrong input ends with one line on standard error and exit status 2; Ctrl-C ends a command with 130, SIGTERM with
143. A command that keeps finished parts says so, and goes on when it is run again. Results are written once and never merged: an existing file is
refused unless `--overwrite` is given.

Words in capitals stand for values that you give; options without one are switches.
"""


def commands(group: Any, path: tuple[str, ...] = ("headwise",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words of the command, command) of every command that does something, in the order of `--help`."""
    for name in group.list_commands(None):  # some groups make their commands when they are asked for
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


def page(app: Any) -> str:
    """The whole page as Markdown."""
    every = list(commands(get_command(app)))
    index = [f"| [`{' '.join(words)}`](#{'-'.join(words)}) | {first_sentence(command.help)} |" for words, command in every]
    table = ["| command | what it does |", "|---|---|", *index, ""]
    return HEAD + "\n" + "\n".join(table) + "\n" + "\n".join(section(words, command) for words, command in every)


def section(words: tuple[str, ...], command: Any) -> str:
    """Heading, help, usage and parameters of one command."""
    given = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in given if parameter.param_type_name == "argument"]
    options = [parameter for parameter in given if parameter.param_type_name == "option"]
    kinds = value_kinds(command.callback)
    required = [f" {option.opts[0]} {kinds[option.name]}" for option in options if option.required]
    usage = " ".join(words) + "".join(f" {metavar(argument)}" for argument in arguments) + "".join(required) + " [OPTIONS]"
    lines = [f"## {' '.join(words)}", "", " ".join((command.help or "").split()), "", "```text", usage, "```", ""]
    if arguments:
        lines += ["| argument | default | meaning |", "|---|---|---|", *map(argument_row, arguments), ""]
    rows = [option_row(option, kinds.get(option.name, "")) for option in options]
    return "\n".join([*lines, "| option | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def argument_row(argument: Any) -> str:
    """One row of the table of arguments."""
    return f"| `{metavar(argument)}` | {default_of(argument)} | {cell(argument.help)} |"


def option_row(option: Any, kind: str) -> str:
    """One row of the table of options."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"| {names} | {kind and f'`{kind}`'} | {default_of(option)} | {cell(option.help)} |"


def metavar(argument: Any) -> str:
    """`FILE`, or `[MODEL]` if it may be left out."""
    name = (argument.metavar or argument.name.upper()).strip("[].")
    shown = name if argument.required else f"[{name}]"
    return shown + "..." * (argument.nargs == -1)


def value_kinds(function: Any) -> dict[str, str]:
    """Parameter -> what is written behind it: TEXT, NUMBER, PATH, or nothing for a switch. Read from the function's annotations."""
    hints = get_type_hints(function)
    plain = {name: [kind for kind in get_args(hint) if kind is not type(None)] or [hint] for name, hint in hints.items()}
    return {name: KINDS.get(kinds[0], "TEXT") for name, kinds in plain.items()}


def default_of(parameter: Any) -> str:
    """The default as `--help` states it: a value, a remark, or nothing."""
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return cell(parameter.show_default)
    default = parameter.default
    if default is None or default is False or callable(default) or parameter.show_default is False:
        return ""
    return f"`{default}`"


def cell(text: str | None) -> str:
    """Text that may stand in a table."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def first_sentence(text: str | None) -> str:
    """Up to the first full stop or semicolon."""
    return cell(text).split(". ")[0].split(";")[0].rstrip(".") + "."


def main() -> int:
    """Write the page, or compare it."""
    from headwise.cli.main import app

    text = page(app)
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text("utf-8") == text
        sys.stdout.write("" if same else f"{PAGE} differs from the commands; run python tools/cli_reference.py\n")
        return 0 if same else 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
