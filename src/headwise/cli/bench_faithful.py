"""`headwise bench faithful`: whom answers follow, the documents or memory, and how far their sentences rest on the documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.checkers import HELP, checker_of
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.cli.contrasts import Words
    from headwise.evaluation.decoders import Decoder
    from headwise.models.model import Model
    from headwise.prompts.encoder import Stops
    from headwise.prompts.prompt import PromptBuilder
    from headwise.runtime.rundir import RunDirectory

ITEMS, SHORT, LONG, CHECKER = 100, 20, 200, "lexical"
# A measurement: (folder of finished questions, report of progress) -> result with `to_json` and `save`.
Run = Callable[["RunDirectory", Any], Any]
Where = tuple[str, str, str | None, str | None]  # device, dtype, revision, name in results

Data = Annotated[
    Path,
    typer.Option(
        help="Questions: with short answers and passages (NQ-open oracle, NQ-Swap, PopQA, own JSON lines), or with documents and answers in "
        "whole sentences (CLAPNQ, ExpertQA, QuoteSum, HAGRID, WebGPT, own JSON lines)."
    ),
]
Layout = Annotated[str, typer.Option(help="Layout of the file, where it cannot be told from its fields.")]
Checker = Annotated[str | None, typer.Option(help=f"For answers in whole sentences. {HELP}", show_default=CHECKER)]
Decoders = Annotated[
    str,
    typer.Option(
        help="Decoders beside plain greedy decoding, separated by commas: closed:alpha=0.5 (against the question without its documents; "
        "combine=adaptive or routed), heads:FILE,top=8,combine=entropy (against the model without heads), model:NAME, control:alpha=0.2 (for models "
        "of headwise train rhio)."
    ),
]
Items = Annotated[int, typer.Option(min=1, help="At most so many questions, in an order drawn with the seed.")]
MinQuestions = Annotated[
    int | None, typer.Option(help="For short answers: fewest questions that a measure rests on.", show_default="20")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.", show_default="20; in sentences: 200")]
Shots = Annotated[int | None, typer.Option(help="For short answers: solved examples in front of each question.", show_default="0")]
Wording = Annotated[
    str, typer.Option(help="Wording of the prompts: plain or instructed; for short answers also cloze or bare.")
]
Against = Annotated[
    list[Path] | None,
    typer.Option(help="Results of other models on the same questions, whose rows stand in the table, too.", show_default=False),
]


def faithful(
    context: typer.Context,
    model: o.ModelName = None,
    data: Data = ...,  # type: ignore[assignment]
    layout: Layout = "auto",
    checker: Checker = None,
    decoders: Decoders = "plain",
    items: Items = ITEMS,
    min_questions: MinQuestions = None,
    max_new_tokens: MaxNewTokens = None,
    shots: Shots = None,
    wording: Wording = "plain",
    against: Against = None,
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
    """Measure whether answers keep to their documents.

    Short answers: correction (the passage is right, memory is wrong), resistance (the passage is wrong, memory is right), agreement. Answers in
    whole sentences: support of each sentence by the documents, beside coverage, length and refusals. Faithful is not true: a model that trusts
    documents trusts wrong ones, too.
    """
    path = o.output_path(output, name or model, "faithful", overwrite)
    names = _names(decoders)
    others = [_read_result(file) for file in against or ()]
    long = _in_sentences(data, layout)
    if long:
        o.refuse_unused(context, ("min_questions", "shots"), f"is for short answers, and {data.name} holds answers in sentences; leave it out")
    else:
        o.refuse_unused(context, ("checker",), f"is for answers in sentences, and {data.name} holds short answers; leave it out")
    given = {"names": names, "items": items, "wording": wording, "chat": chat, "chat_args": chat_template_args, "seed": seed}
    if long:
        limit = LONG if max_new_tokens is None else max_new_tokens
        described, run = _support(model, data, layout, checker or CHECKER, limit, (device, dtype, revision, name), given)
    else:
        limit = SHORT if max_new_tokens is None else max_new_tokens
        least = 20 if min_questions is None else min_questions
        described, run = _follow(model, data, layout, shots or 0, limit, least, (device, dtype, revision, name), given)
    _measure(path, described, run, others, overwrite, json)


def _measure(
    path: Path, described: Mapping[str, Any], run: Run, others: Sequence[tuple[str, dict[str, Any]]], overwrite: bool, json: bool
) -> None:
    from headwise.evaluation.faithful import check_same_questions
    from headwise.runtime.rundir import RunDirectory

    for name, other in others:
        check_same_questions(described, other, name)
    directory = RunDirectory(path.with_name(path.name + ".run"), described)
    with progress("answering", hidden=json) as report:
        result = run(directory, report)
    told = result.to_json()
    result.save(path, overwrite)  # last: while it is missing, the same command goes on
    directory.remove()
    rows = [*told["rows"], *_rows_of(others, {row["model"] for row in told["rows"]})]
    if json:
        o.print_json({"result": str(path), "kind": told["kind"], "dropped": told["dropped"], "rows": rows})
        return
    from headwise.report.console import print_all
    from headwise.report.faithful_tables import dropped_line, faithful_table, support_table

    table = faithful_table(rows) if told["kind"] == "faithful" else support_table(rows, told["checker"])
    print_all(table, *dropped_line(told["dropped"]), f"result     {path}")


def _follow(
    name: str | None, data: Path, layout: str, shots: int, limit: int, least: int, where: Where, given: Mapping[str, Any]
) -> tuple[dict[str, Any], Run]:  # fmt: skip
    """Short answers: what the measurement is described by, and the measurement."""
    from headwise.evaluation.faithful import FaithfulOptions, describe_faithful, measure_faithful
    from headwise.runtime.answer import stop_ids
    from headwise.runtime.knowledge_asked import ask
    from headwise.runtime.knowledge_questions import KnowledgeQuestions

    options = FaithfulOptions(limit, least, given["seed"])
    questions = KnowledgeQuestions(
        data, layout, records=None, min_records=1, wording=given["wording"], shots=shots, chat=given["chat"],
        chat_template_args=given["chat_args"], seed=given["seed"],
    )  # fmt: skip
    loaded = o.load(name, *where)
    asked = ask(loaded, questions)
    records, composer = asked.records[: given["items"]], asked.composer
    stop = stop_ids(loaded, given["chat"] and composer.builder.opens_thought)
    decoders = _made(given["names"], loaded, composer.builder, stop, limit, where)
    described = _with_heads(describe_faithful(loaded, records, composer, ["plain", *decoders], options), given["names"])

    def run(kept: RunDirectory, report: Any) -> Any:
        return replace(measure_faithful(loaded, records, composer, decoders, options, kept, report), provenance=described)

    return described, run


def _support(
    name: str | None, data: Path, layout: str, checker: str, limit: int, where: Where, given: Mapping[str, Any]
) -> tuple[dict[str, Any], Run]:  # fmt: skip
    """Answers in sentences: what the measurement is described by, and the measurement."""
    from headwise.evaluation.grounded import SupportOptions, describe_support, measure_support
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grounded import drawn, read_grounded
    from headwise.prompts.grounded_prompts import GroundedComposer
    from headwise.prompts.prompt import chat_arguments
    from headwise.runtime.answer import stop_ids

    options, arguments = SupportOptions(limit, given["seed"]), chat_arguments(given["chat_args"])
    records = drawn(read_grounded(data, layout), given["items"], given["seed"])
    judge = checker_of(checker, where[0])
    loaded = o.load(name, *where)
    composer = GroundedComposer(PieceEncoder(loaded.tokenizer), given["wording"], given["chat"], arguments)
    stop = stop_ids(loaded, composer.opens_thought, lines=not given["chat"])
    decoders = _made(given["names"], loaded, composer.builder, stop, limit, where)
    described = _with_heads(describe_support(loaded, records, composer, judge, ["plain", *decoders], options), given["names"])

    def run(kept: RunDirectory, report: Any) -> Any:
        return replace(measure_support(loaded, records, composer, judge, decoders, options, kept, report), provenance=described)

    return described, run


def _names(text: str) -> dict[str, Words]:
    """Name in tables -> what it says, of decoders besides plain decoding. Files are called without their folders, unless two would look alike."""
    from headwise.cli.cache_methods import split_specs
    from headwise.cli.contrasts import DECODERS, parse_contrast
    from headwise.evaluation.decoders import PLAIN

    specs = list(dict.fromkeys(spec for spec in split_specs(text) if spec != PLAIN))
    words = [parse_contrast(spec, DECODERS) for spec in specs]
    short = [one.text.replace(one.source, Path(one.source).name, 1) if one.kind == "heads" else one.text for one in words]
    return {name if short.count(name) == 1 else one.text: one for name, one in zip(short, words, strict=True)}


def _made(names: Mapping[str, Words], loaded: Model, builder: PromptBuilder, stop: Stops, limit: int, where: Where) -> dict[str, Decoder]:
    from headwise.cli.contrasts import branch_of
    from headwise.evaluation.decoders import CLOSED, CONTROL, contrastive_decoder
    from headwise.prompts.control import check_control

    found = {}
    for name, words in names.items():
        if words.kind == CONTROL:
            check_control(builder)
        o.tell_other_model(words.scores, loaded)
        negative = words.kind if words.kind in (CLOSED, CONTROL) else branch_of(loaded, words, *where[:2])
        found[name] = contrastive_decoder(loaded, stop, limit, negative, builder.head, **words.rule)
    return found


def _with_heads(told: Mapping[str, Any], names: Mapping[str, Words]) -> dict[str, Any]:
    """What a measurement is described by, and the heads of its decoders, because a file of heads may change."""
    heads = {name: [str(head) for head in words.scores.top(words.heads["top"])] for name, words in names.items() if words.scores is not None}
    return {**told, "decoder_heads": heads} if heads else dict(told)


def _in_sentences(data: Path, layout: str) -> bool:
    """Whether a file holds answers in sentences; a layout that only one kind of file has says so, else the fields of the first row do."""
    from headwise.heads.errors import PromptError
    from headwise.heads.files import read_json_rows
    from headwise.prompts import grounded, knowledge_files

    known = {"auto", *grounded.LAYOUTS, *knowledge_files.LAYOUTS}
    if layout not in known:
        raise HeadwiseError(f"unknown layout {layout!r}; use auto, {', '.join(sorted(known - {'auto'}))}")
    if (layout in grounded.LAYOUTS) != (layout in knowledge_files.LAYOUTS):
        return layout in grounded.LAYOUTS
    first = next(read_json_rows(data, "questions", PromptError), ("", None))[1]
    return grounded.layout_of(first) is not None


def _rows_of(others: Sequence[tuple[str, dict[str, Any]]], taken: set[str]) -> list[dict[str, Any]]:
    """Rows of other results; a model whose name is taken already is told by the name of its file, too."""
    found = []
    for file, other in others:
        names = {str(row["model"]) for row in other["rows"]}
        clash = names & taken
        found += [row | {"model": f"{row['model']} ({Path(file).name})"} if row["model"] in clash else row for row in other["rows"]]
        taken |= names
    return found


def _read_result(file: Path) -> tuple[str, dict[str, Any]]:
    from headwise.heads.files import read_json

    found = read_json(file, "a result")
    if not isinstance(found, dict):
        raise HeadwiseError(f"{file} is no result; give one that headwise bench faithful wrote on the same data")
    return str(file), found
