"""`headwise bench cache`: what compressed caches still answer, against the bytes they hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.caches.kept_layer import Compressor
    from headwise.cli.cache_methods import Budget
    from headwise.evaluation.compression import Candidate, Context
    from headwise.models.model import Model
    from headwise.prompts.prompt import Prompt

app = typer.Typer(name="bench", help="Measure methods against one another.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure methods against one another."""


@app.command("cache")
def cache(
    model: o.ModelName = None,
    methods: Annotated[
        str, typer.Option(help="Names with options: snapkv,compresskv:heads=FILE, and oracle.")
    ] = "streamingllm,snapkv,oracle",
    budgets: Annotated[str, typer.Option(help="Shares of the prompt (0.1) or positions (256).")] = "0.05,0.1,0.2",
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer.")] = "512",
    tasks: Annotated[str, typer.Option(help="Of the micro-world: needle, key_value, passages.")] = "needle,key_value,passages",
    ruler: Annotated[
        Path | None, typer.Option(help="Parquet file in RULER's layout, instead of tasks.", show_default=False)
    ] = None,
    items: Annotated[int, typer.Option(help="Contexts per task and length.")] = 20,
    questions: Annotated[int, typer.Option(help="Questions per context.")] = 1,
    question: Annotated[str, typer.Option(help="inside or outside of what is compressed.")] = "inside,outside",
    split: Annotated[str, typer.Option(help="test, selection or train: whose names and wordings.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of contexts and intervals.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap RULER's prompts by the model's chat template.")] = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page: recall against bytes, and what each method keeps.", show_default=False),
    ] = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Recall against bytes of several methods and budgets, beside the full cache on the same questions."""
    path = o.output_path(output, model, "cache", overwrite)
    chosen, wanted = _candidates(methods, budgets, ruler is not None), o.numbers(lengths, "lengths")
    loaded = o.load(model, device, dtype, revision)
    for candidate in chosen:
        if hasattr(candidate.make, "check"):
            candidate.make.check(loaded)  # all of them before any work
    from headwise.evaluation.compression import measure_compression
    from headwise.heads.headfile import write_json
    from headwise.models.provenance import describe_model

    contexts = _contexts(loaded, ruler, chat, tasks.split(","), wanted, (items, questions, split, seed))
    protocols = [part.strip() for part in question.split(",")]
    with progress("cache", hidden=json) as report:
        rows = measure_compression(loaded, chosen, contexts, protocols, seed, report)
    result = describe_model(loaded) | {"methods": methods, "budgets": budgets, "items": items, "split": split, "seed": seed}
    result |= {"questions": questions, "ruler": None if ruler is None else ruler.name, "rows": rows}
    write_json(result, path, overwrite)
    if html is not None:
        from headwise.cli.bench_page import write_cache_page

        write_cache_page(html, result, loaded, chosen, contexts[0], protocols[0])
    _tell(result, path, html, json)


def _tell(result: dict[str, Any], path: Path, html: Path | None, json: bool) -> None:
    from headwise.cli.pictures import draw, picture_line
    from headwise.report.compression import NOTE, compression_tables, recall_figure
    from headwise.report.console import print_all

    picture = draw(partial(recall_figure, result), path.with_suffix(".png"))
    rows = [_short(row) for row in result["rows"]]
    if json:
        o.print_json({"result": str(path), "picture": picture, "page": None if html is None else str(html), "rows": rows})
        return
    pages = [] if html is None else [f"page       {html}"]
    print_all(*compression_tables(result), NOTE, f"result     {path}", *picture_line(picture), *pages)


def _contexts(
    loaded: Model, ruler: Path | None, chat: bool, tasks: list[str], lengths: tuple[int, ...], drawn: tuple[int, int, str, int]
) -> list[Context]:
    """drawn: items, questions, split, seed."""
    from importlib.metadata import entry_points

    from headwise.evaluation.compression import ruler_contexts

    if ruler is None:
        known = {entry.name: entry for entry in entry_points(group="headwise.tasks")}
        if unknown := [task.strip() for task in tasks if task.strip() not in known]:
            listed = ", ".join(known) or "none; pip install headwise-lab brings those of the micro-world"
            raise HeadwiseError(f"unknown task {unknown[0]!r}; known: {listed}")
        return [
            c for task in tasks for length in lengths for c in known[task.strip()].load()(loaded, task.strip(), length, *drawn)
        ]
    from headwise.prompts.ruler import read_ruler

    return ruler_contexts(loaded, read_ruler(ruler)[: drawn[0]], chat)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without the table of heads."""
    return {name: value for name, value in row.items() if name != "survival_heads"}


def _candidates(methods: str, budgets: str, ruler: bool) -> list[Candidate]:
    """The full cache, then every method with every budget; methods without a budget, or with one of their own, once."""
    from headwise.cli.cache_methods import known_options, parse_cache, read_budget, split_specs
    from headwise.evaluation.compression import Candidate

    sizes = [read_budget("--budgets", part.strip()) for part in budgets.split(",")]
    found = [Candidate("full", None, parse_cache("full"))]
    for text in split_specs(methods):
        name, _, options = text.partition(":")
        if name == "oracle":
            if ruler or options:
                raise HeadwiseError("the oracle takes no options, and needs tasks whose answers have a known place (not --ruler)")
            found += [Candidate(name, size, partial(_oracle, size)) for size in sizes]
        elif "budget" not in known_options(name):
            found += [Candidate(text, None, parse_cache(text))] if name != "full" else []
        elif own := [part.partition("=")[2] for part in options.split(",") if part.partition("=")[0].strip() == "budget"]:
            found.append(Candidate(text, read_budget("budget", own[0].strip()), parse_cache(text)))
        else:
            found += [Candidate(text, size, parse_cache(text, size)) for size in sizes]
    return found


def _oracle(size: Budget, prompt: Prompt) -> Compressor:
    from headwise.caches.controls import Oracle
    from headwise.cli.cache_methods import sized

    # With the token behind each answer: a model that cannot see where the answer ends says more than it.
    spans, last = prompt.spans.values(), len(prompt.ids) - 1
    return Oracle(positions=tuple(i for span in spans for i in range(span.start, min(span.stop, last) + 1)), **sized(size))
