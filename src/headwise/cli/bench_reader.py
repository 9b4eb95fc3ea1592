"""`headwise bench reader`: how well the attention of retrieval heads tells which sentences of an answer the documents support."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress

Data = Annotated[
    Path, typer.Option(help="Questions with documents and answers whose sentences were judged: ExpertQA, HAGRID, or own JSON lines.")
]


def reader(
    model: o.ModelName = None,
    data: Data = ...,  # type: ignore[assignment]
    heads: Annotated[Path, typer.Option(help="Head file of retrieval heads (headwise detect).")] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option(min=1, help="How many of the strongest heads of --heads.")] = 8,
    layout: Annotated[str, typer.Option(help="Layout of the file, where it cannot be told from its fields.")] = "auto",
    items: Annotated[int, typer.Option(min=1, help="At most so many questions, in an order drawn with the seed.")] = 100,
    pool: Annotated[str, typer.Option(help="Over heads, at each token: mean or max.")] = "mean",
    controls: Annotated[int, typer.Option(help="Draws of layer-matched random heads.")] = 20,
    wording: Annotated[str, typer.Option(help="Wording of the prompts: plain or instructed.")] = "plain",
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    name: o.Name = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Read judged answers with a small model: attention of its heads to the documents, per sentence, against the judgements.

    Beside it stand scores that need no heads: layer-matched random heads, shared words, and the length of the sentence.
    """
    path = o.output_path(output, name or model, "reader", overwrite)
    from headwise.evaluation.head_reader import ReaderOptions, describe_reader, read_answers
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grounded import drawn, read_grounded
    from headwise.prompts.grounded_prompts import GroundedComposer
    from headwise.prompts.prompt import chat_arguments
    from headwise.runtime.rundir import RunDirectory

    options, arguments = ReaderOptions(pool, controls, seed), chat_arguments(chat_template_args)
    scores = o.read_scores(heads)
    records = drawn(read_grounded(data, layout), items, seed)
    loaded = o.load(model, device, dtype, revision, name, heads=scores)
    chosen = loaded.check(scores.top(top))
    composer = GroundedComposer(PieceEncoder(loaded.tokenizer), wording, chat, arguments)
    directory = RunDirectory(path.with_name(path.name + ".run"), describe_reader(loaded, chosen, records, composer, options))
    with progress("reading", hidden=json) as report:
        result = read_answers(loaded, chosen, records, composer, options, directory, report)
    told = result.to_json()
    result.save(path, overwrite)  # last: while it is missing, the same command goes on
    directory.remove()
    _tell(told, path, json)


def _tell(told: dict[str, Any], path: Path, json: bool) -> None:
    from headwise.report.console import print_all
    from headwise.report.faithful_tables import dropped_line, reader_table

    if json:
        o.print_json({"result": str(path), "dropped": told["dropped"], "rows": told["rows"]})
    else:
        print_all(reader_table(told), *dropped_line(told["dropped"]), f"result     {path}")
