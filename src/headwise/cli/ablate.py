"""`headwise ablate`: what a model loses when heads are ablated."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.notes import tell_shared_places
from headwise.cli.progress import progress

if TYPE_CHECKING:
    from headwise.evaluation.ablation import AblationOptions
    from headwise.heads import HeadScores
    from headwise.models.model import Model
    from headwise.prompts.grid import Task

OF_NEEDLES = (  # parameters that only the task `needle` looks at
    "lengths", "depths", "windows", "needles", "haystack", "template", "chat", "chat_template_args", "max_new_tokens", "no_perplexity",
)  # fmt: skip


def ablate(
    context: typer.Context,
    model: o.ModelName = None,
    heads: Annotated[Path, typer.Option(help="Head file from `headwise detect` (or of another project).")] = ...,  # type: ignore[assignment]
    top: Annotated[str, typer.Option(help="How many of the strongest heads to ablate, e.g. 1,2,4,8.")] = "1,2,4,8",
    mode: Annotated[str, typer.Option(help="zero (output 0), uniform (query 0), mean (mean output) or resample (outputs of other text).")] = "zero",
    scope: Annotated[str, typer.Option(help="Where heads are ablated: answer (from the last prompt token on) or all.")] = "answer",
    controls: Annotated[
        int | None, typer.Option(help="Draws of layer-matched random heads per K.", show_default="20; lm-eval: 1")
    ] = None,
    task: Annotated[str, typer.Option(help="needle, or lm-eval:NAME (a task of lm-evaluation-harness; needs that extra).")] = "needle",
    limit: Annotated[int | None, typer.Option(help="lm-eval: at most this many items.", show_default=False)] = None,
    include_path: Annotated[Path | None, typer.Option(help="lm-eval: folder with task definitions.", show_default=False)] = None,
    lengths: o.Lengths = None,
    depths: o.Depths = 5,
    windows: o.Windows = 1,
    needles: o.Needles = None,
    haystack: o.Haystack = None,
    template: o.Template = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 32,
    no_perplexity: Annotated[bool, typer.Option("--no-perplexity", help="Do not measure perplexity of plain text.")] = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Ablate the strongest heads, and as many random and weak ones, and measure how recall and perplexity change."""
    _refuse_unused(context, task)
    kind = f"ablation-{mode}-{scope}" if task == "needle" else "ablation-" + task.replace(":", "-")
    path = o.output_path(output, model, kind, overwrite)
    from headwise.evaluation.ablation import AblationOptions

    draws = (20 if task == "needle" else 1) if controls is None else controls
    options = AblationOptions(o.numbers(top, "top", repeats=True), mode, scope, draws, seed, max_new_tokens)
    scores = o.read_scores(heads)
    scores.top(max(options.top))
    loaded = o.load(model, device, dtype, revision)
    loaded.check(scores.top(max(options.top)))
    o.tell_other_model(scores, loaded)
    if task != "needle":
        from headwise.cli.ablate_lm_eval import run_task

        run_task(loaded, scores, task, options, limit, include_path, path, overwrite, json)
        return
    from headwise.prompts.grid import even_depths
    from headwise.prompts.prompt import chat_arguments
    from headwise.runtime.needle_runs import needle_task

    wanted = None if lengths is None else o.numbers(lengths, "lengths")
    grid = needle_task(
        loaded, split="test", lengths=wanted, depths=even_depths(depths), windows=windows, needles=needles, haystack=haystack,
        template=template, chat=chat, chat_args=chat_arguments(chat_template_args), seed=seed,
    )  # fmt: skip
    _sweep(loaded, scores, grid, options, not no_perplexity, path, overwrite, json)


def _refuse_unused(context: typer.Context, task: str) -> None:
    if task == "needle":
        o.refuse_unused(context, ("limit", "include_path"), "goes with --task lm-eval:NAME; leave it out")
    else:
        o.refuse_unused(context, OF_NEEDLES, "goes with --task needle; leave it out")


def _sweep(
    loaded: Model, scores: HeadScores, grid: Task, options: AblationOptions, perplexity: bool, path: Path, overwrite: bool, json: bool
) -> None:  # fmt: skip
    from headwise.evaluation.ablation import ablation_curve, describe_run
    from headwise.runtime.rundir import RunDirectory

    directory = RunDirectory(path.with_name(path.name + ".run"), describe_run(loaded, scores, grid, options))
    given: dict[str, Any] = asdict(options) | {"task": grid, "perplexity": perplexity, "directory": directory}
    with progress("ablating", hidden=json) as report:
        result = ablation_curve(loaded, scores, report=report, **given)
    from headwise.report.ablation_curves import ablation_curves

    picture = o.draw(partial(ablation_curves, result.to_json()), path.with_suffix(".png"))
    result.save(path, overwrite)  # last: while it is missing, the same command goes on and draws the picture again
    directory.remove()
    if result.provenance.get("shared_places"):
        tell_shared_places(result.provenance)
    _tell(result.to_json(), path, picture, json)


def _tell(data: dict[str, object], path: Path, picture: str | None, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.tables import ablation_table

    if json:
        o.print_json({"result": str(path), "picture": picture, "summary": data["summary"]})
    else:
        print_all(ablation_table(data), f"result     {path}", *o.picture_line(picture))
