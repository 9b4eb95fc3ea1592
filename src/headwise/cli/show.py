"""`headwise show`: look at a head file, an ablation or a needle grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwise.cli import options as o
from headwise.core.errors import HeadwiseError


def show(
    file: Annotated[
        Path, typer.Argument(help="Head file (headwise, Wu-style or HeadKV JSON, DuoAttention .tsv), ablation or needle result.")
    ],
    top: Annotated[int, typer.Option(help="How many heads to list.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the pictures.", show_default="beside FILE")
    ] = None,
    format: Annotated[str, typer.Option(help="png or svg.")] = "png",
    json: o.Json = False,
) -> None:
    """Print a result as a table and draw its pictures."""
    if format not in ("png", "svg"):
        raise HeadwiseError(f"unknown picture format {format!r}; use png or svg")
    from headwise.core.headfile import load_result
    from headwise.report.show import show_heads, show_result

    kind, data = load_result(file)
    stem = (output or file.parent) / file.name.removesuffix(".gz").removesuffix(file.suffix).removesuffix(".json")
    lines, pictures, facts = show_heads(data, stem, format, top) if kind == "heads" else show_result(data, stem, format)
    if json:
        o.print_json({"file": str(file), "pictures": [str(p) for p in pictures], **facts})
        return
    from headwise.report.console import print_all

    print_all(*lines, *(f"picture    {path}" for path in pictures))
