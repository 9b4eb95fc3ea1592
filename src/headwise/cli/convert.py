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
    group: Annotated[int, typer.Option(help="Query heads per KV head, to spread a DuoAttention table over query heads.")] = 1,
    json: o.Json = False,
) -> None:
    """Convert head scores between headwise, Wu-style JSON, HeadKV JSON and DuoAttention TSV."""
    from headwise.heads import HeadwiseError, load_heads, save_heads
    from headwise.heads.formats import read_foreign, write_foreign
    from headwise.heads.headfile import read_text

    if group < 1:
        raise HeadwiseError(f"--group must be at least 1; got {group}")
    scores = read_foreign(read_text(file), file, group) if group > 1 else load_heads(file)
    if to == "headwise":
        save_heads(scores, output)
    else:
        write_foreign(scores, output, to)
    if json:
        o.print_json({"file": str(output), "format": to, "layers": scores.shape[0], "heads": scores.shape[1]})
    else:
        typer.echo(f"{output}: {scores.shape[0]} layers x {scores.shape[1]} heads, {scores.score} score, format {to}")
