"""The `headwise` command. Commands are thin: options, call, write. Heavy imports happen inside them."""

from __future__ import annotations

import signal
import sys
from functools import cache
from importlib.metadata import entry_points
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.main import get_command

from headwise.cli import (
    ablate,
    bench,
    claims,
    convert,
    demo,
    detect,
    doctor,
    doubt,
    export,
    generate,
    info,
    models,
    needle,
    plan,
    rank,
    select,
    serve,
    show,
    steer,
    trace,
    train,
)
from headwise.cli.notes import held, tell_held
from headwise.cli.options import Root
from headwise.heads.errors import HeadwiseError, MissingExtraError, NothingToRepair
from headwise.heads.files import can_continue
from headwise.heads.text import one_line

NEXT = "Start with: headwise demo (under five minutes on two idle cores; fetches a model of 93 MB once). What is installed: headwise doctor"
STOPPED, TERMINATED = 130, 143  # by Ctrl-C, by SIGTERM
UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of it inside typer

app = typer.Typer(
    name="headwise",
    cls=Root,
    help="Find, test and use retrieval heads: the attention heads that carry information from a long context into the answer.",
    epilog=NEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(detect.app)
app.command("show")(show.show)
app.command("ablate")(ablate.ablate)
app.command("needle")(needle.needle)
app.command("rank")(rank.rank)
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)
app.add_typer(steer.app)
app.add_typer(doubt.app)
app.add_typer(train.app)
app.add_typer(trace.app)
app.add_typer(bench.app)
app.add_typer(claims.app)
app.add_typer(select.app)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.add_typer(models.app)
app.command("plan")(plan.plan)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
for entry in entry_points(group="headwise.commands"):  # of other installed packages, such as headwise-lab
    app.add_typer(entry.load())


@cache
def _command() -> Any:
    """All commands, made once in a process: that takes 50 ms, and tests run hundreds of them in one."""
    return get_command(app)


class Terminated(SystemExit):
    """SIGTERM: the command ends as after Ctrl-C, with what it has finished so far on disk."""


def run() -> None:
    """Entry point: errors that a user can cause become one line on stderr and exit status 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _command()(prog_name="headwise", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            sys.exit(error.exit_code)
        command = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(error.format_message() + command)
    except NothingToRepair as told:
        held.clear()
        sys.stdout.write(one_line(str(told)) + "\n")
        status = 0
    except (HeadwiseError, MissingExtraError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except Terminated:
        status = TERMINATED
    if held:  # asked here, so that a command without notes goes through one file less
        tell_held()
    if status in (STOPPED, TERMINATED):
        sys.stderr.write("headwise: stopped" + ("; run the same command again to continue\n" if can_continue() else "\n"))
    sys.exit(status)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _fail(message: str) -> NoReturn:
    held.clear()
    sys.stderr.write("headwise: error: " + one_line(message) + "\n")
    sys.exit(2)
