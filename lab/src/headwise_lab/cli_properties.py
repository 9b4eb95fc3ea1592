"""`headwise lab properties`: the five properties of retrieval heads, on real models and on the lab models, beside the paper's values."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from rich.table import Table

RESULT, PAGE = "properties.json", "properties.html"


def properties(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Names, folders or hub ids; models without a recipe.json are real ones.",
            show_default="all bundled lab models",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page, the JSON, figures and head files.")] = Path(
        "headwise-out/properties"
    ),
    seed: Annotated[int, typer.Option(help="Seed of haystack windows, random heads, questions and intervals.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, to see that everything runs.")] = False,
    stories: Annotated[
        Path | None,
        typer.Option(help="Folder of stories260K for the negative control.", show_default="the one in a source checkout"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with relations.jsonl(.gz) of LRE, for questions to real models about facts and written steps."),
    ] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Check the five properties of retrieval heads, the reasoning claim and a negative control, and write one page about it."""
    _check_folder(output, overwrite)
    from transformers.utils import logging

    from headwise.heads.headfile import write_json
    from headwise_lab.properties.control import check_stories
    from headwise_lab.properties.facts import read_relations
    from headwise_lab.properties.lab_models import choose_models
    from headwise_lab.properties.run import measure_properties
    from headwise_lab.properties.settings import RealSettings, Settings
    from headwise_lab.report.page import write_page

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings, real, started = Settings(seed=seed), RealSettings(seed=seed), time.monotonic()
    if quick:
        settings, real = settings.quick(), real.quick()
    chosen = choose_models(models or [])
    check_stories(stories)
    if data is not None:
        read_relations(data)  # refused before an hour of work
        if not any(model.real for model in chosen):
            raise HeadwiseError("--data would change nothing: lab models are asked about the micro-world; leave it out")
    work = output / "unfinished"
    with progress("measuring", hidden=json) as report:
        result = measure_properties(chosen, settings, stories, work, output / "heads", report, real, data)
    write_json(result, output / RESULT, overwrite=True)
    _remove(work)
    pictures = write_page(result, output / PAGE, output / "figures")
    seconds = round(time.monotonic() - started, 1)
    if json:
        verdicts = [{key: one[key] for key in ("key", "verdict", "found")} for one in result["properties"]]
        o.print_json({"result": str(output / RESULT), "page": str(output / PAGE), "seconds": seconds, "properties": verdicts})
        return
    from headwise.report.console import print_all

    lines = [
        f"page       {output / PAGE}",
        f"result     {output / RESULT}",
        f"figures    {len(pictures) - 1} in {output / 'figures'}",
    ]
    print_all(_table(result), result["verdict_rule"], *lines, f"seconds    {seconds:.0f}")


def _check_folder(output: Path, overwrite: bool) -> None:
    """Refuse before any work is done."""
    if output.exists() and not output.is_dir():
        raise HeadwiseError(f"{output} is a file; give a folder with --output")
    for name in (RESULT, PAGE):
        o.check_file(output / name, "--output", overwrite)


def _remove(work: Path) -> None:
    """Finished parts are not needed once the result is safe. Files that are not ours stay."""
    import contextlib

    from headwise.runtime.rundir import remove_run

    for run in work.iterdir() if work.is_dir() else ():
        remove_run(run)
    with contextlib.suppress(OSError):  # there is none, or something else lies in it
        work.rmdir()


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("property", "verdict", "here", box=None, header_style="bold", pad_edge=False)
    for one in result["properties"]:
        table.add_row(one["title"].lower(), one["verdict"], one["found"])
    return table
