"""`headwise train mudaf` and `headwise train rank`: teach chosen heads to tell the passages that answer from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores, HeadSet
    from headwise.models.model import Model
    from headwise.train.examples import Prepared
    from headwise.train.objectives import Objective
    from headwise.train.options import Steps, Tuning

AnySteps = TypeVar("AnySteps", bound="Steps")
Data = Annotated[
    Path,
    typer.Option(help="Questions with passages, gold and answers: JSON lines of our own, HotpotQA, or NQ with gold passages (.gz too)."),
]
HeadFile = Annotated[Path | None, typer.Option(help="Head file, best of headwise detect mdqa.", show_default=False)]
Top = Annotated[int, typer.Option(min=1, help="How many heads of it.")]
Pick = Annotated[str, typer.Option(help="Which: top, bottom, or random (of the layers of the top ones).")]
Passages = Annotated[
    int | None, typer.Option(help="Fill examples up to this many passages with those of others, best by BM25.", show_default="as they are")
]
StepCount = Annotated[int, typer.Option(help="Training steps.")]
Batch = Annotated[int, typer.Option(help="Examples per pass.")]
Accumulate = Annotated[int, typer.Option(help="Passes per step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Rank = Annotated[int, typer.Option(help="Rank of the adapter (LoRA).")]
Parts = Annotated[str, typer.Option(help="Projections of attention that are adapted: query, key, value, output.")]
RowsOnly = Annotated[bool, typer.Option("--rows", help="Only rows of the chosen heads learn; needs --parts query,key.")]
Length = Annotated[
    int | None, typer.Option(help="Longest example in tokens; distractors that do not fit are left out.", show_default="2048, or the model's context")
]
SaveEvery = Annotated[int, typer.Option(help="Keep the state every so many steps.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Save memory: compute hidden states twice.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="New folder for adapter, merged checkpoint and training.json.")]
NEEDED: Any = ...
LONGEST = 2048  # tokens of an example


class Given(NamedTuple):
    """What all of these commands are given.

    Attributes:
        model, device, dtype, revision: Of the model.
        data, passages, chat: Of the data.
        heads, top, pick: Of the heads.
        output: Folder of the result.
        length: Longest example; None: `LONGEST`, or the model's context.
        json: Print JSON.
    """

    model: str | None
    device: str
    dtype: str
    revision: str | None
    data: Path
    passages: int | None
    chat: bool
    heads: Path | None
    top: int
    pick: str
    output: Path
    length: int | None
    json: bool


def mudaf(
    context: typer.Context,
    model: o.ModelName = None,
    data: Data = NEEDED,
    heads: HeadFile = None,
    top: Top = 8,
    pick: Pick = "top",
    output: Folder = NEEDED,
    alpha: Annotated[float, typer.Option(help="Weight of the loss on the heads; the answer's has 1 - alpha. 0: plain fine-tuning.")] = 0.7,
    mode: Annotated[str, typer.Option(help="in_context (in the prompt) or separate (question and passages alone, as published).")] = "in_context",
    sim: Annotated[str, typer.Option(help="per_head, or concat (one cosine over all heads, as published).")] = "per_head",
    pool: Annotated[str, typer.Option(help="mean (of a passage's keys) or lse (attention mass).")] = "mean",
    temperature: Annotated[float | None, typer.Option(help="Of the cosine.", show_default="0.05")] = None,
    passages: Passages = None,
    steps: StepCount = 200,
    batch: Batch = 1,
    accumulate: Accumulate = 4,
    rate: Rate = 2e-4,
    rank: Rank = 16,
    parts: Parts = "query,key,value,output",
    rows: RowsOnly = False,
    length: Length = None,
    save_every: SaveEvery = 50,
    checkpointing: Checkpointing = False,
    chat: o.Chat = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Fine-tune on answers while chosen heads learn to look at gold passages (MuDAF, Liu et al. 2025), or plainly with --alpha 0."""
    if not 0 <= alpha <= 1:
        raise HeadwiseError(f"--alpha must lie in [0, 1]; got {alpha:g}")
    if not alpha:
        names = ("heads", "top", "pick", "mode", "sim", "pool", "temperature") if not rows else ("mode", "sim", "pool", "temperature")
        o.refuse_unused(context, names, "is about the loss on the heads, which has no weight with --alpha 0; leave it out")
    if alpha and heads is None:
        raise HeadwiseError("--heads is needed: a head file, best of headwise detect mdqa; or --alpha 0 for plain fine-tuning")
    given = Given(model, device, dtype, revision, data, passages, chat, heads, top, pick, output, length, json)
    tuning = tuning_of(
        parts, steps=steps, batch=batch, accumulate=accumulate, rate=rate, rank=rank, rows=rows, length=length, save_every=save_every,
        checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    choice = {"alpha": alpha, "mode": mode, "sim": sim, "pool": pool, "temperature": temperature}

    def loss(chosen: HeadSet) -> Any:
        from headwise.methods.mudaf.loss import MudafLoss

        return MudafLoss(chosen, temperature, sim, pool, mode)

    _train(given, tuning, ({"loss": "mudaf"} | choice) if alpha else {"loss": "answers"}, alpha, loss)


def rank(
    model: o.ModelName = None,
    data: Data = NEEDED,
    heads: HeadFile = NEEDED,
    top: Top = 16,
    pick: Pick = "top",
    output: Folder = NEEDED,
    temperature: Annotated[float, typer.Option(help="Of the softmax over passages, whose scores lie in [0, 1].")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Weight of the loss on the heads; 1: no answer is learnt, and fewer layers run.")] = 1.0,
    passages: Passages = None,
    steps: StepCount = 200,
    batch: Batch = 1,
    accumulate: Accumulate = 4,
    rate: Rate = 2e-4,
    rank: Rank = 16,
    parts: Parts = "query,key,value,output",
    rows: RowsOnly = False,
    length: Length = None,
    save_every: SaveEvery = 50,
    checkpointing: Checkpointing = False,
    chat: o.Chat = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Fine-tune the heads that headwise rank ranks with, so that their attention tells relevance (QRRanker, arXiv:2602.12192)."""
    if not 0 < alpha <= 1:
        raise HeadwiseError(f"--alpha must lie in (0, 1]; got {alpha:g}")
    given = Given(model, device, dtype, revision, data, passages, chat, heads, top, pick, output, length, json)
    tuning = tuning_of(
        parts, steps=steps, batch=batch, accumulate=accumulate, rate=rate, rank=rank, rows=rows, length=length, save_every=save_every,
        checkpointing=checkpointing, seed=seed,
    )  # fmt: skip

    def loss(chosen: HeadSet) -> Any:
        from headwise.methods.query.loss import RankLoss

        return RankLoss(chosen, temperature)

    _train(given, tuning, {"loss": "rank", "alpha": alpha, "temperature": temperature}, alpha, loss)


def tuning_of(parts: str, length: int | None, **given: Any) -> Tuning:
    """Options of a training as the command line gives them; parts: names with commas between them."""
    from headwise.train.options import Tuning

    names = tuple(part.strip() for part in parts.split(",") if part.strip())
    return Tuning(parts=names, length=LONGEST if length is None else length, **given)


def _train(given: Given, tuning: Tuning, choice: dict[str, Any], alpha: float, loss: Callable[[HeadSet], Any]) -> None:
    from headwise.train.objectives import AnswerLoss
    from headwise.train.run import train_to_folder

    o.check_new_folder(given.output, "--output")
    scores = None if given.heads is None else o.read_scores(given.heads)
    chosen = None if scores is None else picked(scores, given.top, given.pick, tuning.seed)
    on_heads = None if chosen is None or not alpha else loss(chosen)
    records = records_of(given)
    loaded = o.load(given.model, given.device, given.dtype, given.revision, heads=scores)
    if chosen is not None:
        loaded.check(chosen)
    tuning = fitted(loaded, tuning, given.length)
    data = prepared_data(loaded, records, given, tuning, alone=choice.get("mode") == "separate", answers=alpha < 1)

    def objective(trained: Model) -> Objective:
        from headwise.train.head_loss import HeadLoss

        return AnswerLoss() if on_heads is None else HeadLoss(trained, on_heads, alpha)

    told = [] if chosen is None else [str(head) for head in chosen]
    story = {**choice, "trained_heads": told, "data": given.data.name, "passages": given.passages, "chat": given.chat}
    with progress("training", hidden=given.json) as report:
        made = train_to_folder(loaded, data, objective, tuning, given.output, story, given.model or loaded.name, chosen, report)
    tell_trained(made, given.output, given.json, *lines_of(given.output, "headwise detect mdqa {} --data FILE"))


def picked(scores: HeadScores, top: int, pick: str, seed: int) -> HeadSet:
    """Heads of a file.

    Args:
        scores: Of the file.
        top: How many.
        pick: `top`, `bottom`, or `random`: as many of the same layers.
        seed: Of the random ones.

    Raises:
        HeadwiseError: Another word, or more heads than there are.
    """
    if pick not in ("top", "bottom", "random"):
        raise HeadwiseError(f"--pick takes top, bottom or random; got {pick!r}")
    if pick == "bottom":
        return scores.bottom(top, seed)
    best = scores.top(top)
    if pick == "top":
        return best
    from headwise.stats.controls import layer_matched_random

    return layer_matched_random(best, scores, seed)


def records_of(given: Given) -> Any:
    """The records of --data, filled up to --passages."""
    from headwise.prompts.ranking_data import read_ranking_examples

    records = read_ranking_examples(given.data)
    if given.passages is None:
        return records
    from headwise.runtime.distractors import fill_up

    return fill_up(records, given.passages)


def prepared_data(loaded: Model, records: Any, given: Given, options: Steps, alone: bool = False, answers: bool = True) -> Prepared:
    """Examples to train on; a line on standard error says what was left out."""
    from headwise.cli.notes import hold
    from headwise.train.examples import WHY, prepared

    data = prepared(loaded, records, options.length, given.chat, options.seed, alone, answers)
    left = {name: count for name, count in data.counts.items() if count}
    if left:
        told = ", ".join(f"{count} {WHY[name]}" for name, count in left.items())
        hold(f"{len(data.examples)} of {len(records)} examples are trained on: {told}")
    return data


def fitted(loaded: Model, options: AnySteps, length: int | None) -> AnySteps:
    """The options with the longest example that the model takes.

    Args:
        loaded: The model.
        options: Of the training.
        length: What --length said.

    Raises:
        HeadwiseError: --length is more than the model's context.
    """
    if loaded.positions is None or options.length <= loaded.positions:
        return options
    if length is not None:
        raise HeadwiseError(f"--length {length} is more than the {loaded.positions} positions of {loaded.name}")
    return replace(options, length=loaded.positions)


def tell_trained(made: dict[str, Any], output: Path, json: bool, *lines: str) -> None:
    """Print the losses of a training (or JSON), and lines about its files.

    Args:
        made: The content of `training.json`.
        output: Folder of the result.
        json: Print JSON.
        lines: About what lies there.
    """
    curve: list[dict[str, float]] = made["curve"]
    if json:
        o.print_json({"result": str(output), "counts": made["counts"], "curve": curve})
        return
    from rich.table import Table

    from headwise.report.console import print_all

    names = [name for name in ("loss", "answer", "heads", "grad_norm") if name in curve[0]]
    table = Table("Steps", *(name.replace("_", " ").capitalize() for name in names), title="Training: means over the steps")
    size = -(-len(curve) // 8)
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        means = (sum(row[name] for row in part) / len(part) for name in names)
        table.add_row(f"{start + 1}-{start + len(part)}", *(f"{mean:.3f}" for mean in means))
    print_all(table, *lines)


def lines_of(output: Path, use: str) -> tuple[str, ...]:
    """Where adapter and checkpoint lie, and a command that uses the checkpoint, in whose place {} stands."""
    merged = output / "merged"
    return f"adapter    {output / 'adapter'}", f"checkpoint {merged}", f"use it     {use.format(merged)}"
