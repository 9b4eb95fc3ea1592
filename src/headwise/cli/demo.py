"""`headwise demo`: find the retrieval heads of a model, ablate them, and explore them. Runs the commands that a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import SHOWN

Say = Callable[[str], None]
ABLATED = (1, 2, 4, 8, 16)
MARK = ".headwise-demo"
STORY = "smollm2"  # a real pretrained model; the bundled one stands in for it where it cannot be had
REAL = (("--lengths", "512"), ("--lengths", "512", "--depths", "1", "--controls", "5", "--no-perplexity"))
LAB = (("--lengths", "256,512,1024"), ("--lengths", "512", "--depths", "2", "--controls", "20"))
OTHER = ((), ("--depths", "2", "--controls", "20"))  # lengths as the commands choose them: those that fit


def demo(
    model: o.ModelName = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; older results in it are replaced.")
    ] = Path("headwise-out/demo"),
    json: o.Json = False,
) -> None:
    """A tour of three commands: find the retrieval heads of a model, ablate them, and write a page to explore them.

    Without a model: of smollm2, a real pretrained model with 135M parameters, which is fetched once (93 MB); where it cannot be had, of lab-6m.
    """
    from headwise.models.names import DEFAULT

    _take(output)
    say = _keep_still if json else _say
    name = model or _story(say)
    started = time.perf_counter()
    heads, ablation, page = (str(output / file) for file in ("heads.json", "ablation.json", "explorer.html"))
    grid, sweep = {STORY: REAL, DEFAULT: LAB}.get(name, OTHER)
    found = _headwise(say, "detect", name, *grid, "--depths", "5", "-o", heads, "--overwrite")
    _tell_heads(found, say)
    removed = _headwise(
        say, "ablate", name, "--heads", heads, "--top", ",".join(map(str, ABLATED)), *sweep, "-o", ablation, "--overwrite"
    )
    _tell_removal(removed, say)
    shown = _headwise(say, "show", heads, ablation, "--html", page, "--model", name)
    if json:
        o.print_json({"heads": found, "ablation": removed, "page": shown["page"]})
    say(f"\nhead file  {found['head_file']}")
    for line in (*o.picture_line(found["heat_map"], "heat map"), *o.picture_line(removed["picture"], "curves")):
        say(line)
    say(f"explorer   {shown['page']}  (open it in a browser)")
    say(
        f"Done in {time.perf_counter() - started:.0f} s. Next: docs/start.md explains every step; headwise --help lists all commands"
    )


def _story(say: Say) -> str:
    """The model that the demo tells about without one named: fetched now, so that its time is not counted."""
    from headwise.heads.errors import HeadwiseError
    from headwise.models.names import DEFAULT

    try:
        o.bring(STORY)
    except HeadwiseError as error:
        say(f"{STORY} cannot be had here: {error}\nThe demo goes on with the bundled {DEFAULT}, a small model that we trained.\n")
        return DEFAULT
    return STORY


def _take(output: Path) -> None:
    """Mark the folder as ours. One with other things in it is refused: results replace files of the same names."""
    from headwise.heads.errors import HeadwiseError
    from headwise.heads.files import write_atomically

    if output.exists() and not output.is_dir():
        raise HeadwiseError(f"{output} is a file; give a folder with --output")
    held = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if MARK not in held and any(not name.startswith(f".{MARK}.") for name in held):  # a killed process leaves a temporary one
        raise HeadwiseError(f"{output} holds files that no demo of headwise wrote; give another --output, or an empty folder")
    write_atomically(output / MARK, b"headwise demo 1\n")


def _headwise(say: Say, *arguments: str) -> dict[str, Any]:
    """Show a command and run it; its error is told by itself, and ends the demo."""
    say("$ headwise " + " ".join(arguments))
    # Threads that wait for one another actively crawl as soon as anything else runs on the same cores.
    calm = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, SHOWN: "" if say is _keep_still else "1"}
    done = subprocess.run([sys.executable, "-m", "headwise", *arguments, "--json"], stdout=subprocess.PIPE, text=True, env=calm)
    if done.returncode:
        raise typer.Exit(done.returncode)
    result: dict[str, Any] = loads(done.stdout)
    return result


def _tell_heads(found: dict[str, Any], say: Say) -> None:
    say(f"\n  {found['solved']} of {found['runs']} needle questions answered.")
    say(f"  {found['over_0.1']} of {found['layers'] * found['heads']} heads have a copy score above 0.1. The strongest:")
    say("  " + "   ".join(f"{entry['head']} {entry['score']:.2f}" for entry in found["top"][:8]))
    agree = found["split_half_reliability"]  # none if too few questions were answered
    say("" if agree is None else f"  The scores of two random halves of the runs correlate with r = {agree:.3f}.\n")


def _tell_removal(result: dict[str, Any], say: Say) -> None:
    recall = {(row["kind"], row["k"]): row["mean"] for row in result["summary"] if row["metric"] == "recall"}
    say(f"\n  Needle recall of the unchanged model: {recall['none', 0]:.2f}")
    say("  heads ablated   strongest   random (mean of draws)   weakest")
    for k in ABLATED:
        say(f"  {k:13d}   {recall['top', k]:9.2f}   {recall['random', k]:22.2f}   {recall['bottom', k]:7.2f}")
    say("")


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()  # before the next command writes


def _keep_still(text: str) -> None:
    """For --json, which prints nothing else."""
