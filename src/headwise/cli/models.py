"""`headwise models`: the models that have a name, which of them are here, and how the others are brought."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

app = typer.Typer(name="models", help="List the models that have a name, and fetch them.", no_args_is_help=True)
Named = Annotated[str, typer.Argument(help="A name of `headwise models list`.")]


@app.command("list")
def list_models(json: o.Json = False) -> None:
    """List the models that have a name: what they are, whether they are here, and the command that brings them."""
    rows = _rows()
    if json:
        o.print_json({"models": rows})
        return
    from rich.table import Table

    from headwise.report.console import print_all

    table = Table("name", "parameters", "size", "licence", "here", "what it is", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[:5]:
        column.no_wrap = True
    for row in rows:
        sizes = _millions(row["parameters"]), _megabytes(row["bytes"])
        table.add_row(row["name"], *sizes, row["licence"] or "-", "yes" if row["folder"] else "no", row["title"])
    missing = [row for row in rows if not row["folder"]]
    print_all(table, *(f"{row['name']} is brought by: {row['command']}" for row in missing))


@app.command("get")
def get(name: Named, json: o.Json = False) -> None:
    """Fetch a model, unless it is here, and print its folder."""
    _tell(name, o.bring(name) or _here(name), json)


@app.command("path")
def path(name: Named, json: o.Json = False) -> None:
    """Print the folder of a model that is here."""
    _tell(name, _here(name), json)


def _tell(name: str, folder: Path, json: bool) -> None:
    if json:
        o.print_json({"name": name, "folder": str(folder)})
    else:
        typer.echo(str(folder))


def _here(name: str) -> Path:
    """The folder of a known model; one that is not here is refused with the command that brings it."""
    from headwise.models import fetch, names, registry

    folder = names.bundled_models().get(name)
    entry = registry.entry_named(name)
    if entry is not None:
        folder = fetch.present(entry)
    if folder is not None:
        return folder
    if entry is not None or name in registry.LAB_MODELS:
        command = registry.LAB_COMMAND if entry is None else entry.command
        raise HeadwiseError(f"model {name!r} is not here; run: {command}")
    hint = names.near(name) or "headwise models list shows those that can be had"
    raise HeadwiseError(f"unknown model {name!r}; {hint}")


def _rows() -> list[dict[str, Any]]:
    from headwise.models import fetch, registry
    from headwise.models.names import bundled_models

    bundled = bundled_models()
    rows = [
        _row(e.name, e.title, e.licence, e.parameters, e.held, fetch.present(e), e.command) | {"aliases": list(e.aliases)}
        for e in registry.ENTRIES
    ]
    for name, lab in registry.LAB_MODELS.items():
        folder = bundled.pop(name, None)
        rows.append(_row(name, lab.title, registry.LAB_LICENCE, lab.parameters, lab.held, folder, registry.LAB_COMMAND))
    for name, folder in sorted(bundled.items()):
        held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        rows.append(_row(name, "of another package", None, None, held, folder, None))
    return rows


def _row(
    name: str, title: str, licence: str | None, parameters: int | None, held: int, folder: Path | None, command: str | None
) -> Any:
    return {
        "name": name,
        "title": title,
        "licence": licence,
        "parameters": parameters,
        "bytes": held,
        "folder": None if folder is None else str(folder),
        "command": command,
    }


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g}M"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
