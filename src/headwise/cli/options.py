"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.models.model import Model
    from headwise.prompts.grid import Task

ModelName = Annotated[
    str | None,
    typer.Argument(
        help="Hub id or folder of the model, or the name of a bundled one. Default: the bundled lab model.", show_default=False
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16 (auto: float32 on a CPU, as saved elsewhere).")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default=False)]
Lengths = Annotated[
    str | None, typer.Option(help="Context lengths in tokens, e.g. 512,1024. Default: three that fit.", show_default=False)
]
Depths = Annotated[int, typer.Option(help="Number of evenly spaced depths.")]
Windows = Annotated[int, typer.Option(help="Haystack windows per needle and length.")]
Needles = Annotated[
    Path | None,
    typer.Option(help="JSON lines with needle, question, answer and, if wanted, answer_prefix.", show_default="the bundled ones"),
]
Haystack = Annotated[
    Path | None, typer.Option(help="Folder of .txt/.md files (.gz too).", show_default="three public-domain books")
]
Template = Annotated[str | None, typer.Option(help="Prompt with {context}, {question}, {answer_prefix}.", show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap the prompt by the model's chat template.")]
Seed = Annotated[int, typer.Option(help="Seed of haystack windows and controls.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write the result.", show_default="headwise-out/...")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

# The last tenth of the haystack is kept for perplexity and calibration; needle prompts never use it.
PROMPT_PART = (0.0, 0.9)


def load(model: str | None, device: str, dtype: str, revision: str | None = None) -> Model:
    """Load the model, quietly; a bundled one by its name, and without a name the default."""
    from transformers.utils import logging

    from headwise.cli import remote_code
    from headwise.models.load import load as load_model
    from headwise.models.registry import DEFAULT

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_model(DEFAULT if model is None else model, device, dtype, revision, trust_remote_code=remote_code.allowed())


def numbers(text: str, name: str, repeats: bool = False) -> tuple[int, ...]:
    """Positive whole numbers separated by commas; each once unless `repeats`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise HeadwiseError(f"--{name} takes positive whole numbers separated by commas, like 1,2,4; got {text!r}")
    found = [int(part) for part in parts]
    return tuple(found if repeats else dict.fromkeys(found))


def make_task(
    loaded: Model,
    *,
    split: str,
    lengths: tuple[int, ...] | None,
    depths: tuple[float, ...],
    windows: int,
    needles: Path | None,
    haystack: Path | None,
    template: str | None,
    chat: bool,
    seed: int,
) -> Task:
    """Needles, haystack and grid of a run. split: which bundled needles to use if the user gives none."""
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grid import GridOptions, Task, default_lengths
    from headwise.prompts.haystack import Haystack as Hay
    from headwise.prompts.haystack import bundled_texts, read_texts
    from headwise.prompts.needles import NeedleComposer, bundled_needles, read_needles

    chosen = bundled_needles(split) if needles is None else read_needles(needles)
    encoder = PieceEncoder(loaded.tokenizer)
    composer = NeedleComposer(encoder, template, chat)
    grid = GridOptions(lengths or default_lengths(loaded.positions), depths, windows, PROMPT_PART, seed)
    texts = bundled_texts() if haystack is None else read_texts(haystack)
    return Task(chosen, Hay(texts, encoder), composer, grid)


def output_path(output: Path | None, model: str | None, kind: str, overwrite: bool) -> Path:
    """Where to write; an existing file is refused before any work is done."""
    from headwise.models.registry import DEFAULT

    name = DEFAULT if model is None else model.rstrip("/").split("/")[-1]
    path = output or Path("headwise-out") / f"{name}.{kind}.json"
    if path.is_dir():
        raise HeadwiseError(f"{path} is a folder; give a file name with --output")
    if path.exists() and not overwrite:
        raise HeadwiseError(f"{path} exists; give another --output or --overwrite (results are never merged)")
    return path


def print_json(data: Any) -> None:
    """One JSON object on standard output."""
    import json

    typer.echo(json.dumps(data, allow_nan=False))
