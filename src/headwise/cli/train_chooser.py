"""`headwise train chooser`: distil what chooses positions for sparse decoding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress

if TYPE_CHECKING:
    from headwise.models.draft_head import DraftHead

Text = Annotated[
    Path | None,
    typer.Option(
        help="Folder of texts (.txt, .md, also .gz) to learn from; the last twentieth is held out.",
        show_default="the bundled novels",
    ),
]
Inputs = Annotated[
    str,
    typer.Option(
        help="What it reads: emb (the token's embedding), emb+feat (and three hidden states of the token before), feat-lite (and one)."
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        help="What it learns: attention (where the model attends), tokens (its next-token probabilities), labels (the next tokens)."
    ),
]


def chooser(
    model: o.ModelName = None,
    text: Text = None,
    inputs: Inputs = "emb+feat",
    loss: Loss = "attention",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 600,
    batch: Annotated[int, typer.Option(min=1, help="Texts per step.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens per text.")] = 512,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    heads: Annotated[
        Path | None, typer.Option(help="Head file: retrieval heads, whose attention counts as --share.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the strongest heads of --heads.")] = 8,
    share: Annotated[float, typer.Option(help="What they count beside the mean of all heads.")] = 0.5,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Train a chooser for sparse decoding: a small head that names, before the model runs, the positions that all layers read (SpeContext)."""
    path = o.output_path(output, model, "chooser", overwrite, ".safetensors")
    scores = None if heads is None else o.read_scores(heads)
    chosen = None if scores is None else scores.top(top)
    from headwise.methods.specontext.train import ChooserTraining, train_chooser
    from headwise.models.model import describe_model, need_tokenizer
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.haystack import Haystack, bundled_texts, read_texts
    from headwise.runtime.rundir import RunDirectory

    options = ChooserTraining(
        inputs=inputs, loss=loss, steps=steps, batch=batch, length=length, rate=rate, share=share, seed=seed
    )
    texts = bundled_texts() if text is None else read_texts(text, "training")
    loaded = need_tokenizer(o.load(model, device, dtype, revision, heads=chosen), "training a chooser")
    if chosen is not None:
        loaded.check(chosen)
        o.tell_other_model(scores, loaded)
    haystack = Haystack(texts, PieceEncoder(loaded.tokenizer))
    said = describe_model(loaded) | {"fingerprint": loaded.fingerprint, "options": str(options), "text": haystack.digest}
    parts = RunDirectory(
        path.with_name(path.name + ".run"), said | {"heads": None if chosen is None else [str(head) for head in chosen]}
    )
    with progress("training", hidden=json) as report:
        made = train_chooser(loaded, haystack, options, chosen, report, parts)
    made.save(path, overwrite)
    parts.remove()
    _tell(made, path, json)


def _tell(made: DraftHead, path: Path, json: bool) -> None:
    from rich.table import Table

    from headwise.report.console import print_all

    curve: list[dict[str, Any]] = made.story["curve"]
    if json:
        o.print_json({"result": str(path), "curve": curve})
        return
    title = f"Held-out text: share of the {curve[0]['named']} positions that the model attends to most that are named"
    table = Table("Step", "Loss", "Held out", "Recall", "Chance", title=title)
    shown = curve if len(curve) <= 8 else [*curve[:: -(-len(curve) // 7)], curve[-1]]
    for row in {row["step"]: row for row in shown}.values():
        numbers = (row[name] for name in ("loss", "held_out_loss", "recall", "recall_by_chance"))
        table.add_row(str(row["step"]), *("-" if number is None else f"{number:.3f}" for number in numbers))
    use = f"use it     headwise bench decode {made.shape.model} --choosers distilled:file={path}"
    print_all(table, f"chooser    {path} ({path.stat().st_size / 1e6:.1f} MB)", use)
