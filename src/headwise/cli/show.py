"""`headwise show`: look at head files, ablations and needle grids, in the terminal, as pictures, or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores

Result = tuple[Path, str, Any]


def show(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Head files (headwise, Wu-style or HeadKV JSON, DuoAttention .tsv), ablation or needle results.",
        ),
    ],
    top: Annotated[int, typer.Option(help="How many heads to list, and to trace for a page.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the pictures.", show_default="beside FILE")
    ] = None,
    format: Annotated[str, typer.Option(help="png or svg.")] = "png",
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page about all files instead; works offline.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For a page: the model of the first head file, to record what its heads look at.", show_default=False),
    ] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    json: o.Json = False,
) -> None:
    """Print results as tables and draw their pictures, or write a page to explore them."""
    if format not in ("png", "svg"):
        raise HeadwiseError(f"unknown picture format {format!r}; use png or svg")
    if model is not None and html is None:
        raise HeadwiseError("--model records what heads look at, for a page only; give --html PAGE, too")
    from headwise.heads.headfile import load_result

    results: list[Result] = [(file, *load_result(file)) for file in files]
    if html is not None:
        _page(results, html, model, top, device, dtype, json)
    else:
        _pictures(results, output, format, top, json)


def _pictures(results: list[Result], output: Path | None, format: str, top: int, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.show import show_heads, show_result

    told = []
    for file, kind, data in results:
        stem = (output or file.parent) / file.name.removesuffix(".gz").removesuffix(file.suffix).removesuffix(".json")
        lines, pictures, facts = show_heads(data, stem, format, top) if kind == "heads" else show_result(data, stem, format)
        told.append({"file": str(file), "pictures": [str(p) for p in pictures], **facts})
        if not json:
            print_all(*lines, *(f"picture    {path}" for path in pictures))
    if json:
        o.print_json(told[0] if len(told) == 1 else {"files": told})


def _page(results: list[Result], html: Path, model: str | None, top: int, device: str, dtype: str, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.explorer import write_explorer

    if html.is_dir():
        raise HeadwiseError(f"{html} is a folder; give --html a file name")
    traces = []
    if model is not None:
        scores = next((data for _, kind, data in results if kind == "heads"), None)
        if scores is None:
            raise HeadwiseError("--model records what heads look at, but no head file was given")
        traces = _traces(scores, model, top, device, dtype)
    write_explorer(results, html, traces)
    if json:
        o.print_json({"page": str(html), "files": [str(file) for file, *_ in results], "traces": len(traces)})
    else:
        print_all(f"page       {html}")


def _traces(scores: HeadScores, model: str, top: int, device: str, dtype: str) -> list[dict[str, Any]]:
    from headwise.cli.traces import needle_traces

    loaded = o.load(model, device, dtype)
    chosen = scores.top(min(max(top, 1), len(scores.ranking())))
    loaded.check(chosen)
    return needle_traces(loaded, scores, chosen)
