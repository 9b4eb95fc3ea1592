"""`headwise needle`: the needle grid, with no head ablated."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from headwise.cli import options as o
from headwise.cli.notes import tell_shared_places
from headwise.cli.progress import progress


def needle(
    model: o.ModelName = None,
    lengths: o.Lengths = None,
    depths: o.Depths = 10,
    windows: o.Windows = 1,
    needles: o.Needles = None,
    haystack: o.Haystack = None,
    template: o.Template = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 50,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Measure how well a model answers needle questions, over context lengths and depths."""
    path = o.output_path(output, model, "needle", overwrite)
    wanted = None if lengths is None else o.numbers(lengths, "lengths")
    from headwise.evaluation.needle import measure_needle_grid
    from headwise.heads.headfile import write_json
    from headwise.prompts.grid import describe_task, even_depths
    from headwise.prompts.prompt import chat_arguments
    from headwise.report.console import grid_table, print_all
    from headwise.report.needle_grid import needle_grid
    from headwise.runtime.needle_runs import needle_task
    from headwise.runtime.rundir import RunDirectory

    loaded = o.load(model, device, dtype, revision)
    task = needle_task(
        loaded, split="test", lengths=wanted, depths=even_depths(depths), windows=windows, needles=needles,
        haystack=haystack, template=template, chat=chat, chat_args=chat_arguments(chat_template_args), seed=seed,
    )  # fmt: skip
    directory = RunDirectory(
        path.with_name(path.name + ".run"), describe_task(task) | {"model": loaded.name, "limit": max_new_tokens}
    )
    with progress("needle grid", hidden=json) as report:
        result = measure_needle_grid(loaded, task, max_new_tokens, directory, report)
    picture = o.draw(partial(needle_grid, result["cells"]), path.with_suffix(".png"))
    write_json(result, path, overwrite)  # last: while it is missing, the same command goes on and draws the picture again
    directory.remove()
    if result.get("shared_places"):
        tell_shared_places(result)
    if json:
        o.print_json({"result": str(path), "picture": picture, **{k: result[k] for k in ("recall", "exact", "runs")}})
        return
    print_all(
        grid_table(result["cells"]),
        f"recall {result['recall']:.3f}   exact {result['exact']:.3f}   runs {result['runs']}",
        f"result     {path}",
        *o.picture_line(picture),
    )
