"""`headwise lab`: the bundled lab models. `eval` measures what they can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress

if TYPE_CHECKING:
    from rich.table import Table


app = typer.Typer(name="lab", help="The bundled lab models and their micro-world.", no_args_is_help=True)


@app.callback()
def lab() -> None:
    """The bundled lab models and their micro-world."""


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Bundled lab models, folders or hub ids.", show_default="all bundled ones"),
    ] = None,
    items: Annotated[int, typer.Option(help="Prompts per task.")] = 100,
    split: Annotated[str, typer.Option(help="Which names, values and wordings: test, selection or train.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the result as JSON.", show_default=False)
    ] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Measure models on every task of the micro-world and on book text, beside the goals that the lab models were made for."""
    path = None if output is None else o.output_path(output, None, "eval", overwrite)
    from headwise.heads.headfile import write_json
    from headwise.report.console import print_all
    from headwise_lab.evaluation import check_options, evaluate_model

    check_options(items, split, seed)
    loaded = [
        o.load(name, "auto", "auto") for name in dict.fromkeys(models or _bundled())
    ]  # all first: a wrong name is told before minutes of work
    results = []
    for model in loaded:
        with progress(_short(model.name), hidden=json) as report:
            results.append(evaluate_model(model, items, split, seed, report))
    data = {"models": results}
    if path:
        write_json(data, path, overwrite)
    if json:
        o.print_json(data)
        return
    print_all(_table(results), *_remarks(results), *([f"result     {path}"] if path else []))


def _bundled() -> list[str]:
    from headwise.models.names import bundled_names

    return bundled_names()


def _table(results: Sequence[dict[str, Any]]) -> Table:
    """Tasks (rows) and models (columns)."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in ("goal", *(_short(result["model"]) for result in results)):
        table.add_column(name, overflow="fold")  # on a narrow screen names must not lose the part that tells them apart
    rows = [{row["task"]: row for row in result["rows"]} for result in results]
    every = {name: row for found in rows for name, row in found.items()}
    for task in sorted(every, key=lambda name: "@" in name):  # long prompts last; some models have none
        goal = every[task]["goal"]
        table.add_row(task, "" if goal is None else f">= {100 * goal:.0f}", *(_cell(found.get(task)) for found in rows))
    return table


def _cell(row: dict[str, Any] | None) -> str:
    """Value, 95 % interval, and a mark if there is a goal. Shares are per cent."""
    if row is None or row.get("value") is None:
        return "-"
    scale, digits = {"share": (100, 0), "perplexity": (1, 1), "bits": (1, 2)}[row["unit"]]
    value, low, high = (f"{scale * row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}-{high})" + {None: "", True: " ✓", False: " ✗"}[row["met"]]


def _remarks(results: Sequence[dict[str, Any]]) -> list[str]:
    """How to read the table, and what was not measured."""
    lines = ["per cent with 95 % interval; reask_*: mean probability of No; ✓ ✗: goal reached or not"]
    for result in results:
        reasons = {row["reason"]: row["task"] for row in reversed(result["rows"]) if "reason" in row}
        lines += [f"not measured on {_short(result['model'])}: {task} ({why})" for why, task in reversed(reasons.items())]
    return lines


def _short(name: str) -> str:
    return name.rstrip("/").split("/")[-1]
