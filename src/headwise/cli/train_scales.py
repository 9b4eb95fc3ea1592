"""`headwise train scales`: learn how loud each head should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli import train_heads as t
from headwise.cli.progress import progress

Folder = Annotated[Path, typer.Option("--output", "-o", help="New folder for scales.json, merged checkpoint and training.json.")]
HeadFile = Annotated[Path | None, typer.Option(help="Head file: only the scales of its heads learn.", show_default="all heads")]


def scales(
    context: typer.Context,
    model: o.ModelName = None,
    data: t.Data = t.NEEDED,
    heads: HeadFile = None,
    top: t.Top = 8,
    pick: t.Pick = "top",
    output: Folder = t.NEEDED,
    passages: t.Passages = None,
    steps: t.StepCount = 100,
    batch: t.Batch = 1,
    accumulate: t.Accumulate = 4,
    rate: t.Rate = 1e-2,
    length: t.Length = None,
    save_every: t.SaveEvery = 50,
    checkpointing: t.Checkpointing = False,
    chat: o.Chat = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Learn one scale per head on few examples, and merge the scales into the weights (SEAL, arXiv:2501.15225)."""
    if heads is None:
        o.refuse_unused(context, ("top", "pick"), "is about the heads of --heads; give both, or leave it out")
    from headwise.train.options import Steps
    from headwise.train.scales import scales_to_folder

    given = t.Given(model, device, dtype, revision, data, passages, chat, heads, top, pick, output, length, json)
    options = Steps(
        steps=steps, batch=batch, accumulate=accumulate, rate=rate, length=t.LONGEST if length is None else length, save_every=save_every,
        checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    o.check_new_folder(output, "--output")
    scores = None if heads is None else o.read_scores(heads)
    chosen = None if scores is None else t.picked(scores, top, pick, seed)
    records = t.records_of(given)
    loaded = o.load(model, device, dtype, revision, heads=scores)
    if chosen is not None:
        loaded.check(chosen)
    options = t.fitted(loaded, options, length)
    prepared = t.prepared_data(loaded, records, given, options)
    story: dict[str, Any] = {"loss": "answers", "data": data.name, "passages": passages, "chat": chat}
    with progress("training", hidden=json) as report:
        made = scales_to_folder(loaded, prepared, options, output, story, chosen, report)
    t.tell_trained(made, output, json, f"checkpoint {output / 'merged'}", f"look       headwise show {output / 'scales.json'}")
