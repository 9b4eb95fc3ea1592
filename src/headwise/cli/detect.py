"""`headwise detect`: score every head of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.core.errors import HeadwiseError, NoSuccessfulRunError

if TYPE_CHECKING:
    from headwise.core import HeadScores


def detect(
    model: o.Model = None,
    score: Annotated[str, typer.Option(help="Which score: copy.")] = "copy",
    lengths: o.Lengths = None,
    depths: o.Depths = 10,
    windows: o.Windows = 1,
    needles: o.Needles = None,
    haystack: o.Haystack = None,
    template: o.Template = None,
    chat: o.Chat = False,
    rule: Annotated[
        str, typer.Option(help="set (share of needle tokens copied) or multiset (as the released code counts).")
    ] = "set",
    match: Annotated[str, typer.Option(help="token, or position (the aligned needle position only).")] = "token",
    gate: Annotated[float, typer.Option(help="A run counts if its unigram recall is above this.")] = 0.5,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 50,
    until_stable: Annotated[
        bool, typer.Option("--until-stable", help="Stop when two halves of the runs agree on the top 16.")
    ] = False,
    paper_grid: Annotated[bool, typer.Option("--paper-grid", help="20 lengths x 10 depths x 3 needles, as Wu et al.")] = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Find retrieval heads: the heads that copy a needle out of a long context into the answer."""
    if score != "copy":
        raise HeadwiseError(f"unknown score {score!r}; known: copy")
    path = o.output_path(output, model, score, overwrite)
    from headwise.core import save_heads
    from headwise.engine import RunDirectory
    from headwise.methods.find.copy import CopyOptions, describe_run, find_copy_heads
    from headwise.prompts.grid import even_depths, paper_lengths

    chosen = CopyOptions(rule, match, gate, max_new_tokens, until_stable)
    wanted = None if lengths is None else o.numbers(lengths, "lengths")
    loaded = o.load(model, device, dtype, revision)
    task = o.make_task(
        loaded, split="detect", lengths=paper_lengths(loaded.layout.positions) if paper_grid else wanted, depths=even_depths(depths),
        windows=windows, needles=needles, haystack=haystack, template=template, chat=chat, seed=seed,
    )  # fmt: skip
    if paper_grid:
        task = task.first_needles(3)
    directory = RunDirectory(path.with_name(path.name + ".run"), describe_run(loaded, task, chosen))
    try:
        with progress("detecting", hidden=json) as report:
            scores = find_copy_heads(loaded, task, chosen, directory, report)
    except NoSuccessfulRunError:
        directory.remove()
        raise
    save_heads(scores, path, overwrite)
    directory.remove()
    _tell(scores, path, json)


def _tell(scores: HeadScores, path: Path, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.figures import heat_map
    from headwise.report.tables import head_table, summary_lines

    picture = path.with_suffix(".heatmap.png")
    heat_map(scores, picture)
    if json:
        from headwise.report.show import facts_of

        o.print_json({"head_file": str(path), "heat_map": str(picture), **facts_of(scores)})
        return
    print_all(head_table(scores), *summary_lines(scores), f"head file  {path}", f"heat map   {picture}")
