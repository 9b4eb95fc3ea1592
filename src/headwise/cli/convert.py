"""`headwise convert`: head files of other projects, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwise.cli import options as o


def convert(
    file: Annotated[Path, typer.Argument(help="Head file of any known format.")],
    output: Annotated[Path, typer.Argument(help="New file.")],
    to: Annotated[str, typer.Option(help="headwise, wu, headkv or duo.")] = "headwise",
    group: Annotated[
        int | None,
        typer.Option(help="Query heads per KV head: gives each query head the score of its KV head.", show_default=False),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Layers x query heads of the model, e.g. 32x32; for a list that does not name all heads.", show_default=False
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Convert head scores between headwise, Wu-style JSON, HeadKV JSON and DuoAttention TSV."""
    from headwise.heads import load_heads, save_heads
    from headwise.heads.formats import on_grid, spread, write_foreign
    from headwise.heads.text import printable

    scores = load_heads(file)
    if group is not None:
        scores = spread(scores, group)
    if shape is not None:
        scores = on_grid(scores, _grid(shape))
    lost: list[str] = []
    if to == "headwise":
        save_heads(scores, output)
    else:
        lost = write_foreign(scores, output, to)
    layers, heads = scores.shape
    guessed = bool(scores.provenance.get("shape_guessed"))
    if json:
        told = {"file": str(output), "format": to, "layers": layers, "heads": heads, "shape_guessed": guessed, "left_out": lost}
        o.print_json(told)
        return
    typer.echo(printable(f"{output}: {layers} layers x {heads} heads, {scores.score} score, format {to}"))
    if guessed:
        typer.echo(
            f"the list does not name all heads, so {layers} x {heads} is a guess; state the model's with --shape LAYERSxHEADS"
        )
    if lost:
        typer.echo(printable(f"left out, because format {to} has no place for it: {', '.join(lost)}"))


def _grid(text: str) -> tuple[int, int]:
    from headwise.heads import HeadwiseError

    layers, cross, heads = text.partition("x")
    if not cross or not all(part.isascii() and part.isdecimal() and len(part) < 8 and int(part) for part in (layers, heads)):
        raise HeadwiseError(f"--shape takes layers x query heads, like 32x32; got {text!r}")
    return int(layers), int(heads)
