"""`headwise export`: write an ablated model as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwise.cli import options as o


def export(
    model: o.ModelName = None,
    heads: Annotated[Path, typer.Option(help="Head file.")] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option(help="Ablate the K strongest heads.")] = 10,
    mode: Annotated[str, typer.Option(help="Ablated heads get zero (output 0) or uniform (query 0).")] = "zero",
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")] = ...,  # type: ignore[assignment]
    device: o.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="saved (as in the checkpoint), float32, bfloat16 or float16.")] = "saved",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Write a checkpoint with the chosen heads ablated in the weights; any engine can serve it."""
    o.check_new_folder(output, "--output")
    scores = o.read_scores(heads)
    chosen = scores.top(top)
    loaded = o.load(model, device, dtype, revision)
    from headwise.models.export import export_ablated

    export_ablated(loaded, chosen, mode, output)
    o.tell_other_model(scores, loaded)
    kept = str(loaded.hf.dtype).removeprefix("torch.")
    if json:
        o.print_json({"checkpoint": str(output), "mode": mode, "heads": [str(head) for head in chosen], "dtype": kept})
    else:
        typer.echo(f"checkpoint {output}: {len(chosen)} heads ablated ({mode}), {kept}: {', '.join(map(str, chosen))}")
