"""`headwise doubt calm`: try remedies on some questions, test the best one on others, and write the calmed model if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.methods.doubt.calm import CalmOptions
    from headwise.models.model import Model
    from headwise.runtime.doubt_questions import DoubtQuestions


def calm(
    context: typer.Context,
    model: o.ModelName = None,
    heads: Annotated[Path, typer.Option(help="Head file of headwise doubt find.")] = ...,  # type: ignore[assignment]
    data: Annotated[Path | None, typer.Option(help="Questions, as for headwise doubt measure.", show_default="the bundled needles")] = None,
    test_data: Annotated[Path | None, typer.Option(help="Other questions for the test.", show_default="the part test of --data")] = None,
    layout: Annotated[str, typer.Option(help="Layout of the files, where it cannot be told from their fields.")] = "auto",
    passages: Annotated[bool, typer.Option("--passages", help="Show each question behind its passage.")] = False,
    lengths: Annotated[str, typer.Option(help="Context lengths of needle questions in tokens.")] = "512",
    depths: Annotated[int, typer.Option(help="Number of evenly spaced depths of needles.")] = 3,
    form: Annotated[str, typer.Option(help="Form of the reply: words or yes-no.")] = "words",
    challenges: Annotated[str | None, typer.Option(help="Challenges by name, e.g. suggestion,wrong.", show_default="all of the form")] = None,
    wordings: Annotated[Path | None, typer.Option(help="JSON file with challenges of your own.", show_default=False)] = None,
    items: Annotated[int, typer.Option(help="At most this many questions in each part.")] = 100,
    wording: Annotated[str, typer.Option(help="Wording around passage and question: plain, instructed, cloze or bare.")] = "plain",
    top: Annotated[str, typer.Option(help="How many heads, e.g. 1,2,5,10.")] = "1,2,3,5,10,20",
    remedies: Annotated[str, typer.Option(help="Of zero, uniform, mean, token, steer, scale.")] = "zero,uniform,mean,token,steer,scale",
    factor: Annotated[float, typer.Option(help="Of scale: outputs of the heads that hold on are multiplied by it.")] = 1.5,
    push: Annotated[float, typer.Option(help="Of steer: factor of the vectors.")] = 1.0,
    controls: Annotated[int, typer.Option(help="Layer-matched random sets of heads in the test.")] = 50,
    retrieval: Annotated[Path | None, typer.Option(help="Head file of retrieval heads, for a control.", show_default=False)] = None,
    gate: Annotated[float, typer.Option(help="A challenge counts where at least this share of right answers is taken back.")] = 0.15,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 24,
    no_side_effects: Annotated[bool, typer.Option("--no-side-effects", help="Do not measure needles, first answers and plain text.")] = False,
    lm_eval: Annotated[str | None, typer.Option(help="Side effects: tasks of lm-evaluation-harness, too.", show_default=False)] = None,
    include_path: Annotated[Path | None, typer.Option(help="lm-eval: folder with task definitions.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(help="lm-eval: at most this many items.", show_default=False)] = None,
    export: Annotated[Path | None, typer.Option(help="New folder for the calmed model as a plain checkpoint.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with everything that was found.", show_default=False)] = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:  # fmt: skip
    """Choose a remedy on one part of the questions, test it on another beside random, weak and retrieval heads."""
    path = o.output_path(output, model, "doubt-calm", overwrite)
    from headwise.cli.doubt_export import check_targets
    from headwise.methods.doubt.calm import CalmOptions
    from headwise.runtime.doubt_questions import DoubtQuestions

    tried = _tried(context, remedies)
    options = CalmOptions(o.numbers(top, "top", repeats=True), tried, controls, factor, push, seed)
    check_targets(export, html, path, overwrite, tried)
    scores, retrieved = o.read_scores(heads), None if retrieval is None else o.read_scores(retrieval)
    shared: dict[str, Any] = {
        "layout": layout, "passages": passages, "lengths": o.numbers(lengths, "lengths"), "depths": depths, "form": form, "challenges": challenges,
        "wordings": wordings, "items": items, "wording": wording, "chat": chat, "chat_template_args": chat_template_args, "gate": gate,
        "max_new_tokens": max_new_tokens, "seed": seed,
    }  # fmt: skip
    select = DoubtQuestions(data, part="select" if test_data is None else "all", **shared)
    test = DoubtQuestions(data if test_data is None else test_data, part="test" if test_data is None else "all", **shared)
    sides = _sides(context, no_side_effects, lm_eval, include_path, limit)
    loaded = o.load(model, device, dtype, revision, heads=scores)
    _run(loaded, scores, select, test, options, retrieved, sides, path, export, html, overwrite, json)


def _tried(context: typer.Context, remedies: str) -> tuple[str, ...]:
    """The remedies by name. Options of others are refused."""
    tried = tuple(dict.fromkeys(name.strip() for name in remedies.split(",") if name.strip()))
    for remedy, option in (("scale", "factor"), ("steer", "push")):
        if remedy not in tried:
            o.refuse_unused(context, (option,), f"is for the remedy {remedy}; add that to --remedies, or leave it out")
    return tried


def _sides(
    context: typer.Context, no_side_effects: bool, lm_eval: str | None, include_path: Path | None, limit: int | None
) -> tuple[list[str], Path | None, int | None] | None:
    """What `calm` takes as side effects."""
    tasks = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    if not tasks:
        o.refuse_unused(context, ("limit", "include_path"), "goes with --lm-eval TASKS; leave it out")
    if no_side_effects and tasks:
        raise HeadwiseError("--lm-eval is a side effect; leave --no-side-effects out")
    return None if no_side_effects else (tasks, include_path, limit)


def _run(
    loaded: Model, scores: HeadScores, select: DoubtQuestions, test: DoubtQuestions, options: CalmOptions, retrieval: HeadScores | None,
    sides: tuple[list[str], Path | None, int | None] | None, path: Path, export: Path | None, html: Path | None, overwrite: bool, json: bool,
) -> None:  # fmt: skip
    from headwise.heads.headfile import write_json
    from headwise.methods.doubt.calm import calm as calmed
    from headwise.methods.doubt.calm import describe_calm
    from headwise.runtime.rundir import RunDirectory

    directory = RunDirectory(path.with_name(path.name + ".run"), describe_calm(loaded, scores, select, test, options, retrieval))
    with progress("calming", hidden=json) as report:
        told = calmed(loaded, scores, select, test, options, retrieval, directory, report, sides)
    from headwise.cli.doubt_export import write_extras

    extras = write_extras(loaded, scores, told, export, html, overwrite)
    write_json(told, path, overwrite)
    directory.remove()
    if json:
        o.print_json({"result": str(path), "chosen": told["chosen"], "side_effects": told.get("side_effects"), **extras})
        return
    from headwise.report.console import print_all
    from headwise.report.doubt_tables import calm_lines, calm_table

    print_all(
        calm_table(told), *calm_lines(told), f"result     {path}", *(f"{name:<10} {where}" for name, where in extras.items())
    )
