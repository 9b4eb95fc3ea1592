"""`headwise show`: look at head files, ablations and needle grids, in the terminal, as pictures, or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores
    from headwise.report.show import Shown

Result = tuple[Path, str, Any]


def show(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Head files (headwise, Wu-style or HeadKV JSON, DuoAttention .tsv), ablation or needle results.",
        ),
    ],
    top: Annotated[int, typer.Option(help="How many heads to list; with --model, how many to trace.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the pictures.", show_default="beside FILE")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of the pictures: png or svg.", show_default="png")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page about all files instead; it works offline.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --html: the model of the first head file; the page then shows what its heads attend to.",
            show_default=False,
        ),
    ] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    json: o.Json = False,
) -> None:
    """Print results as tables and draw their pictures, or write a page to explore them."""
    if format not in (None, "png", "svg"):
        raise HeadwiseError(f"unknown picture format {format!r}; use png or svg")
    if model is not None and html is None:
        raise HeadwiseError("--model is for pages only; give --html PAGE as well")
    if model is None:
        o.refuse_unused(context, ("device", "dtype"), "is about the model of --model; give both, or leave it out")
    if html is not None and (output is not None or format is not None):
        raise HeadwiseError("--output and --format are for pictures and --html is for a page; run headwise show once for each")
    from headwise.heads.headfile import load_result

    results: list[Result] = [(file, *load_result(file)) for file in files]
    if html is not None:
        _page(results, html, model, top, device, dtype, json)
    else:
        _pictures(results, output, format, top, json)


def _pictures(results: list[Result], output: Path | None, format: str | None, top: int, json: bool) -> None:
    from headwise.report.canvas import require_matplotlib
    from headwise.report.console import print_all

    if output is not None or format is not None:
        require_matplotlib()  # pictures were asked for: refused before anything is printed
    drawn, told = o.can_draw(), []
    for file, kind, data in results:
        shown = _shown(file, kind, data, top)
        stem = file.name.removesuffix(".gz").removesuffix(file.suffix).removesuffix(".json")
        pictures = []
        for name, write in shown.pictures.items() if drawn else ():
            path = (output or file.parent) / ".".join(filter(None, (stem, name, format or "png")))
            write(path)
            pictures.append(str(path))
        told.append({"file": str(file), "pictures": pictures, **shown.facts})
        if not json:
            print_all(*shown.parts, *(line for path in pictures for line in o.picture_line(path)))
    if json:
        o.print_json(told[0] if len(told) == 1 else {"files": told})


def _shown(file: Path, kind: str, data: Any, top: int) -> Shown:
    """Errors name the file."""
    from headwise.report.show import show_heads, show_result

    try:
        return show_heads(data, top) if kind == "heads" else show_result(data)
    except HeadwiseError as error:
        raise HeadwiseError(f"{file}: {error}") from error


def _page(results: list[Result], html: Path, model: str | None, top: int, device: str, dtype: str, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.explorer import write_explorer

    o.check_file(html, "--html")
    traces = []
    if model is not None:
        scores = next((data for _, kind, data in results if kind == "heads"), None)
        if scores is None:
            raise HeadwiseError(
                "--model shows what the heads of a head file attend to, but none of the files is one; give a head file too"
            )
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
    o.tell_other_model(scores, loaded)
    return needle_traces(loaded, scores, chosen)
