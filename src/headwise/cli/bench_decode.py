"""`headwise bench decode`: what sparse decoding keeps, per chooser and budget."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.evaluation.contexts import CacheTask, Context
    from headwise.evaluation.sparse import Rival, Running
    from headwise.heads.types import HeadSet
    from headwise.models.model import Model

Choosers = Annotated[
    str,
    typer.Option(
        help="streaming, random, oracle, previous_query, pages, anchor_layers, retrieval_heads, refresh_every, "
        "distilled:file=FILE, small_model:model=NAME; options as in pages:size=16."
    ),
]
Tasks = Annotated[
    str,
    typer.Option(
        help="needle, key_value, extraction, json_extraction (ten records of a text as JSON, by intersection over union), "
        "text (running text, step by step), greedy (text of the model's own, against that of full attention)."
    ),
]
TextFile = Annotated[Path | None, typer.Option(help="Running text, in place of the bundled novels.", show_default=False)]
HeadFile = Annotated[
    Path | None,
    typer.Option(
        help="Head file: heads for retrieval_heads and refresh_every, and for the mass kept at them.", show_default=False
    ),
]
Page = Annotated[
    Path | None, typer.Option("--html", help="Write a page: quality against bytes read per step.", show_default=False)
]


def decode(
    model: o.ModelName = None,
    choosers: Choosers = "streaming,random,previous_query,pages,anchor_layers,oracle",
    budgets: Annotated[str, typer.Option(help="Positions per KV head and step, first and last ones included.")] = "64,256",
    lengths: Annotated[str, typer.Option(help="Tokens of context and answer (or running text) together.")] = "1024",
    heads: HeadFile = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the strongest heads of --heads.")] = 8,
    tasks: Tasks = "needle,key_value,json_extraction,text",
    contexts: Annotated[int, typer.Option(min=1, help="Contexts per task and length.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Decoding steps over running text, and of greedy text.")] = 64,
    text: TextFile = None,
    min_full: Annotated[float, typer.Option(min=0, max=1, help="Score that full attention must reach on a task.")] = 0.3,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    html: Page = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Compare choosers of sparse decoding at several budgets: answers and running text against bytes read, beside full attention."""
    path = o.output_path(output, model, "decode", overwrite, html=html)
    sizes, wanted = _budgets(budgets), o.numbers(lengths, "lengths")
    scores = None if heads is None else o.read_scores(heads)
    chosen = None if scores is None else scores.top(top)
    names = list(dict.fromkeys(part.strip().replace("-", "_") for part in tasks.split(",") if part.strip()))
    loaded = o.load(model, device, dtype, revision, heads=chosen)
    if chosen is not None:
        loaded.check(chosen)
        o.tell_other_model(scores, loaded)
    rivals = _rivals(choosers, sizes, loaded, chosen)
    drawn = [one for name in names for length in wanted for one in _contexts(loaded, name, length, contexts, steps, text, seed)]
    from headwise.cli.choosers import file_digests
    from headwise.evaluation.sparse import measure_cells
    from headwise.evaluation.sparse_rows import mean_rows
    from headwise.heads.headfile import write_json
    from headwise.models.model import describe_model
    from headwise.runtime.rundir import RunDirectory

    said: dict[str, Any] = {
        "choosers": choosers, "budgets": sizes, "lengths": wanted, "tasks": names, "contexts": contexts, "steps": steps, "seed": seed,
        "heads": None if chosen is None else [str(head) for head in chosen], "text": None if text is None else text.name, "min_full": min_full,
    }  # fmt: skip
    described = describe_model(loaded) | said | {"fingerprint": loaded.fingerprint, "ids": _digest(drawn), "files": file_digests(choosers)}
    directory = RunDirectory(path.with_name(path.name + ".run"), described)
    with progress("sparse decoding", hidden=json) as report:
        cells = measure_cells(loaded, rivals, drawn, chosen, directory, report, min_full)
    rows = mean_rows(cells, [(rival.name, rival.budget) for rival in rivals])
    result = describe_model(loaded) | said | {"rows": rows, "cells": cells}
    if html is not None:
        from headwise.report.sparse import write_page

        write_page(result, html)
    write_json(result, path, overwrite)  # last: while it is missing, the same command goes on
    directory.remove()
    _tell(result, path, html, json)


def _tell(result: dict[str, Any], path: Path, html: Path | None, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.sparse import NOTE, sparse_tables

    if json:
        o.print_json({"result": str(path), "page": None if html is None else str(html), "rows": result["rows"]})
        return
    pages = [] if html is None else [f"page       {html}"]
    print_all(*sparse_tables(result["rows"]), NOTE, f"result     {path}", *pages)


def _budgets(text: str) -> tuple[int, ...]:
    from headwise.attention.sparse import SparseOptions
    from headwise.evaluation.sparse import RECENT, SINKS

    found = o.numbers(text, "budgets")
    for size in found:
        SparseOptions(size, SINKS, RECENT)  # refuses what leaves nothing to choose
    return found


def _rivals(text: str, sizes: tuple[int, ...], loaded: Model, heads: HeadSet | None) -> list[Rival]:
    from headwise.cli.cache_methods import split_specs
    from headwise.cli.choosers import chooser_of
    from headwise.evaluation.sparse import Rival

    specs = list(dict.fromkeys(split_specs(text)))
    if not specs:
        raise HeadwiseError("--choosers names no chooser; give names separated by commas, like streaming,pages")
    makers = {spec: partial(chooser_of, spec, loaded, heads) for spec in specs}
    for make in makers.values():
        make()  # refused before any work
    return [Rival(spec, size, make) for spec, make in makers.items() for size in sizes]


def _contexts(
    loaded: Model, name: str, length: int, count: int, steps: int, text: Path | None, seed: int
) -> list[Context] | list[Running]:
    """What is read for a task at a length."""
    if name in ("text", "greedy"):
        return _running(loaded, length, count, steps, text, seed, name == "greedy")
    task: CacheTask = o.method_named("tasks", name)
    return task(loaded, name, length, count, 1, "test", seed)


def _running(loaded: Model, length: int, count: int, steps: int, text: Path | None, seed: int, free: bool) -> list[Running]:
    from headwise.evaluation.contexts import check_drawing
    from headwise.evaluation.sparse import Running
    from headwise.heads.files import read_text
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.haystack import Haystack, bundled_texts

    check_drawing(loaded, length, count, 1, seed)
    encoder = PieceEncoder(loaded.tokenizer)
    least = steps + 4 + len(encoder.bos)
    if length < least:
        raise HeadwiseError(
            f"{length} tokens do not hold {steps} steps and a context; use --lengths from {least} on, or fewer --steps"
        )
    haystack = Haystack(bundled_texts() if text is None else [read_text(text, "the running text")], encoder)
    tokens = length - len(encoder.bos)
    return [Running(length, (*encoder.bos, *haystack.window(tokens, (seed, 4, i)).ids), steps, free) for i in range(count)]


def _digest(contexts: list[Any]) -> str:
    """A fingerprint of all token ids."""
    import hashlib

    return hashlib.sha256(repr([context.ids for context in contexts]).encode()).hexdigest()[:16]
