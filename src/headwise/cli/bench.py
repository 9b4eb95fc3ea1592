"""`headwise bench`: caches by what they still answer, sparse decoding, answers that keep to their documents, and heads that tell which do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.bench_decode import decode
from headwise.cli.bench_faithful import faithful
from headwise.cli.bench_questions import Asked
from headwise.cli.bench_reader import reader
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.caches.kept_layer import Compressor
    from headwise.cli.cache_methods import Budget
    from headwise.evaluation.compression import Candidate
    from headwise.prompts.prompt import Prompt

app = typer.Typer(name="bench", help="Compare methods with one another.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Compare methods with one another."""


app.command("decode")(decode)
app.command("faithful")(faithful)
app.command("reader")(reader)

Methods = Annotated[str, typer.Option(help="Methods with their options, e.g. snapkv,compresskv:heads=FILE,oracle.")]
Budgets = Annotated[str, typer.Option(help="Budgets: shares of the prompt (0.1) or positions per KV head (256).")]
Lengths = Annotated[str | None, typer.Option(help="For tasks: tokens of prompt and answer together, e.g. 512,1024.", show_default="512")]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="needle (sentences in novels), key_value (a JSON object of random keys), extraction (ten numbers from records in novels in one "
        "answer); headwise-lab adds world.needle, world.key_value and world.passages.",
        show_default="needle,key_value",
    ),
]
Ruler = Annotated[Path | None, typer.Option(help="Parquet file in RULER's layout, in place of tasks.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Questions of your own in place of tasks: JSON lines with context, question, answer and, if wanted, id and answer_prefix.",
        show_default=False,
    ),
]
Items = Annotated[int | None, typer.Option(help="Contexts per task and length, or of the file.", show_default="20; --data: all")]
Questions = Annotated[int | None, typer.Option(help="For tasks: questions per context.", show_default="1")]
Split = Annotated[
    str | None, typer.Option(help="For tasks: which names and wordings are used: test, selection or train.", show_default="test")
]
MinFull = Annotated[
    float, typer.Option(help="Share of the questions that the full cache must answer; below it nothing is compared.")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="For --data: longest answer in tokens.", show_default="32")]
Chat = Annotated[bool, typer.Option("--chat", help="For --ruler and --data: wrap prompts in the model's chat template.")]
Page = Annotated[
    Path | None,
    typer.Option("--html", help="Write a page: recall against bytes, and what each method keeps.", show_default=False),
]


@app.command("cache")
def cache(
    model: o.ModelName = None,
    methods: Methods = "streamingllm,snapkv,oracle",
    budgets: Budgets = "0.05,0.1,0.2",
    lengths: Lengths = None,
    tasks: Tasks = None,
    ruler: Ruler = None,
    data: Data = None,
    items: Items = None,
    questions: Questions = None,
    question: Annotated[str, typer.Option(help="Where the question stands: inside or outside the compressed text.")] = "inside,outside",
    split: Split = None,
    min_full: MinFull = 0.3,
    max_new_tokens: MaxNewTokens = None,
    seed: Annotated[int, typer.Option(help="Seed of contexts and intervals.")] = 0,
    chat: Chat = False,
    chat_template_args: o.ChatArgs = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    html: Page = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Compare cache methods at several budgets: exact answers against bytes held, beside the full cache on the same questions."""
    path = o.output_path(output, model, "cache", overwrite, html=html)
    asked = Asked(tasks, lengths, items, questions, split, seed, ruler, data, chat, chat_template_args, max_new_tokens)
    asked.check()
    if not 0 <= min_full <= 1:
        raise HeadwiseError(f"--min-full is a share between 0 and 1; got {min_full:g}")
    chosen = _candidates(methods, budgets, model)
    loaded = o.load(model, device, dtype, revision)
    for candidate in chosen:
        if hasattr(candidate.make, "check"):
            candidate.make.check(loaded)  # all of them before any work
    for scores in {id(made): made for c in chosen if (made := getattr(c.make, "heads", None)) is not None}.values():
        o.tell_other_model(scores, loaded)
    from headwise.evaluation.compression import measure_compression
    from headwise.heads.headfile import write_json
    from headwise.models.model import describe_model

    contexts = asked.contexts(loaded)
    protocols = [part.strip() for part in question.split(",")]
    with progress("comparing caches", hidden=json) as report:
        found = measure_compression(loaded, chosen, contexts, protocols, seed, report, min_full)
    failed = [gate for gate in found.gates if gate["gate"] == "failed"]
    result = (
        describe_model(loaded)
        | {"methods": list(dict.fromkeys(c.name for c in chosen)), "budgets": budgets, "seed": seed}
        | asked.described(len(contexts))
    )
    result |= {"gate": "failed" if failed else "passed"} | found._asdict()
    write_json(result, path, overwrite)
    if html is not None:
        from headwise.cli.bench_page import write_cache_page

        write_cache_page(html, result, loaded, chosen, contexts[0], protocols[0])
    _tell(result, path, html, json)


def _tell(result: dict[str, Any], path: Path, html: Path | None, json: bool) -> None:
    from headwise.report.compression import NOTE, compression_tables, label_of, recall_figure
    from headwise.report.console import print_all

    picture = o.draw(partial(recall_figure, result), path.with_suffix(".png"))
    rows = [_short(row) for row in result["rows"]]
    if json:
        kept = {name: result[name] for name in ("gate", "gates", "left_out")}
        o.print_json({"result": str(path), "picture": picture, "page": None if html is None else str(html), **kept, "rows": rows})
        return
    notes = [f"{label_of(gate)}: {gate['note']}" for gate in result["gates"] if gate["note"]]
    pages = [] if html is None else [f"page       {html}"]
    print_all(*compression_tables(result), NOTE, *notes, *result["left_out"], f"result     {path}", *o.picture_line(picture), *pages)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without the table of heads."""
    return {name: value for name, value in row.items() if name != "survival_heads"}


def _candidates(methods: str, budgets: str, model: str | None) -> list[Candidate]:
    """The full cache, then every method with every budget; methods without a budget, or with one of their own, once."""
    from headwise.cli.cache_methods import known_options, parse_cache, read_budget, shown, split_specs, with_heads
    from headwise.evaluation.compression import Candidate

    sizes = [read_budget("--budgets", part.strip()) for part in budgets.split(",")]
    found = [Candidate("full", None, parse_cache("full"))]
    specs = split_specs(methods)
    if not specs:
        raise HeadwiseError("--methods names no method; give names separated by commas, like snapkv,streamingllm")
    given = [text if text.partition(":")[0] == "oracle" else with_heads(text, model) for text in specs]
    for text, label in zip(given, shown(given), strict=True):
        name, _, options = text.partition(":")
        if name == "oracle":
            if options:
                raise HeadwiseError("the oracle takes no options; it keeps the tokens of the answer")
            found += [Candidate(name, size, partial(_oracle, size), told=True) for size in sizes]
        elif "budget" not in known_options(name):
            found += [Candidate(label, None, parse_cache(text))] if name != "full" else []
        elif own := [part.partition("=")[2] for part in options.split(",") if part.partition("=")[0].strip() == "budget"]:
            found.append(Candidate(label, read_budget("budget", own[0].strip()), parse_cache(text)))
        else:
            found += [Candidate(label, size, parse_cache(text, size)) for size in sizes]
    return found


def _oracle(size: Budget, prompt: Prompt) -> Compressor:
    from headwise.caches.controls import Oracle
    from headwise.cli.cache_methods import sized

    # With the token behind each answer: a model that cannot see where the answer ends says more than it.
    spans, last = prompt.spans.values(), len(prompt.ids) - 1
    return Oracle(positions=tuple(i for span in spans for i in range(span.start, min(span.stop, last) + 1)), **sized(size))
