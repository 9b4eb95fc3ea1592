"""`headwise train unfaithful`: unfaithful answers for training, by the model without its retrieval heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.checkers import HELP, checker_of
from headwise.cli.progress import progress
from headwise.cli.train_heads import NEEDED, Pick, picked
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.methods.rhio.filters import Kept
    from headwise.models.model import Model
    from headwise.prompts.grounded import GroundedRecord
    from headwise.runtime.branches import Without

Data = Annotated[
    Path,
    typer.Option(
        help="Questions with documents and reference answers: CLAPNQ, ExpertQA, QuoteSum, HAGRID, WebGPT or own JSON lines, or what headwise train "
        "mudaf takes (own, HotpotQA, NQ with passages)."
    ),
]
Layout = Annotated[str, typer.Option(help="Layout of a file with answers in sentences, where it cannot be told from its fields.")]
HeadFile = Annotated[Path | None, typer.Option(help="Head file of the retrieval heads, of headwise detect.", show_default=False)]
Top = Annotated[str, typer.Option(help="How many heads are taken away: a number (16), or a share of all heads (0.1).")]
Source = Annotated[str, typer.Option(help="heads (the model without them), or swap (a control: the answer of another question).")]
Mode = Annotated[str, typer.Option(help="What a head taken away does: zero (nothing) or uniform (it averages what it sees).")]
Scope = Annotated[str, typer.Option(help="Where they are taken away: all, or answer (behind a prompt that was read with them).")]
Checker = Annotated[str, typer.Option(help=HELP)]
Items = Annotated[int | None, typer.Option(min=1, help="At most so many questions, in an order drawn with the seed.", show_default="all")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens; longer ones are dropped.")]
Temperature = Annotated[float, typer.Option(help="0: greedy; above it answers are drawn.")]
TopP = Annotated[float, typer.Option(help="Draw from the best tokens that together reach this probability.")]
Match = Annotated[str, typer.Option(help="In what answers must be like the references: both, length (in tokens), loss (per token) or none.")]
Central = Annotated[float, typer.Option(help="Share of the references whose lengths and losses are the range that answers must lie in.")]
LeastDistinct = Annotated[float, typer.Option(help="Drop answers with a smaller share of distinct word triples: they repeat themselves.")]
MostSupport = Annotated[float, typer.Option(help="Drop answers whose support by the documents is at least this: they are faithful all the same.")]
LeastGap = Annotated[float, typer.Option(help="Stop where references have not so much more mean support than unfaithful answers.")]
Wording = Annotated[str, typer.Option(help="Wording of the prompts: plain or instructed.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="JSON lines with both answers; how they were made goes into a .json beside it.")]


def unfaithful(
    context: typer.Context,
    model: o.ModelName = None,
    data: Data = NEEDED,
    output: Output = NEEDED,
    heads: HeadFile = None,
    top: Top = "0.1",
    pick: Pick = "top",
    source: Source = "heads",
    mode: Mode = "zero",
    scope: Scope = "all",
    layout: Layout = "auto",
    items: Items = None,
    checker: Checker = "lexical",
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    match: Match = "both",
    central: Central = 0.9,
    least_distinct: LeastDistinct = 0.5,
    most_support: MostSupport = 0.9,
    least_gap: LeastGap = 0.1,
    wording: Wording = "plain",
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Make unfaithful answers by a model without its retrieval heads, for headwise train rhio (RHIO, Huang et al. 2025).

    RHIO trains a model to trust its documents, wrong ones included: faithful is not true.
    """
    from headwise.methods.rhio.options import UnfaithfulOptions

    options = UnfaithfulOptions(
        max_new_tokens, temperature, top_p, least_distinct, most_support, match, central, least_gap, seed,
    )  # fmt: skip
    about = _about(output, overwrite)
    scores = _scores(context, source, heads)
    records = _records(data, layout, items, seed)
    judge = checker_of(checker, device)
    loaded = o.load(model, device, dtype, revision, heads=scores)
    without = None if scores is None else _without(loaded, scores, (top, pick, seed), mode, scope)
    kept, told = _made(loaded, records, judge, without, options, (wording, chat, chat_template_args), output, json)
    from headwise.heads.files import write_atomically
    from headwise.heads.headfile import write_json
    from headwise.methods.rhio.file import lines_of
    from headwise.runtime.rundir import remove_run

    told = told | {"data": data.name, "pairs": len(kept.pairs), "counts": dict(kept.counts), "table": dict(kept.table), "ranges": dict(kept.ranges)}
    write_json(told, about, overwrite=True)
    write_atomically(output, lines_of(kept.pairs))  # last: while it is missing, the same command goes on
    remove_run(_run_folder(output))
    _tell(kept, told, output, json)


def _about(output: Path, overwrite: bool) -> Path:
    """The file beside the result that says how it was made."""
    about = output.with_suffix(".json")
    if about == output:
        raise HeadwiseError(f"{output} ends in .json, which is the name of the file beside the result; give --output a name in .jsonl")
    o.check_file(output, "--output", overwrite)
    if about.exists():  # of the result that is replaced, or of a run that was killed between the two files
        from headwise.heads.files import read_json

        found = read_json(about, "a description")
        if not isinstance(found, dict) or found.get("kind") != "unfaithful":
            raise HeadwiseError(f"{about} is no file of headwise train unfaithful and would be replaced; give another --output")
    return about


def _scores(context: typer.Context, source: str, heads: Path | None) -> HeadScores | None:
    if source not in ("heads", "swap"):
        raise HeadwiseError(f"--source takes heads or swap; got {source!r}")
    if source == "swap":
        names = ("heads", "top", "pick", "mode", "scope", "temperature", "top_p")
        o.refuse_unused(context, names, "is for answers of the model, and --source swap takes those of other questions; leave it out")
        return None
    if heads is None:
        raise HeadwiseError("--heads is needed: a head file of headwise detect; or --source swap, which needs none")
    return o.read_scores(heads)


def _records(data: Path, layout: str, items: int | None, seed: int) -> list[GroundedRecord]:
    """Records of a file with documents, or of one with passages and answers."""
    from headwise.heads.errors import PromptError
    from headwise.heads.files import read_json_rows
    from headwise.prompts.grounded import drawn, layout_of, read_grounded

    first = next(read_json_rows(data, "questions", PromptError), ("", None))[1]
    if layout == "auto" and layout_of(first) is None and isinstance(first, Mapping) and "ctxs" in first:
        layout = "nq"  # elsewhere such a file is one of short answers
    found = read_grounded(data, layout)
    return found if items is None else drawn(found, items, seed)


def _without(loaded: Model, scores: HeadScores, choice: tuple[str, str, int], mode: str, scope: str) -> Without:
    from headwise.cli.contrasts import warn_of_many
    from headwise.runtime.branches import Without

    top, pick, seed = choice
    heads = loaded.check(picked(scores, _count(top, scores), pick, seed))
    warn_of_many(heads, loaded)
    return Without(heads, mode, scope)


def _count(text: str, scores: HeadScores) -> int:
    """A number of heads, or that share of all, at least one."""
    every = scores.shape[0] * scores.shape[1]
    try:
        number = float(text)
        if text.isdecimal() and number >= 1:
            return int(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise HeadwiseError(f"--top takes a number of heads (16) or a share of all heads between 0 and 1 (0.1); got {text!r}")
    return max(1, round(number * every))


def _made(
    loaded: Model,
    records: list[GroundedRecord],
    judge: Any,
    without: Without | None,
    options: Any,
    words: tuple[str, bool, str | None],
    output: Path,
    json: bool,
) -> tuple[Kept, dict[str, Any]]:
    """Pairs to learn from, and what they are described by."""
    from headwise.methods.rhio.filters import kept_pairs
    from headwise.methods.rhio.options import ANSWERING
    from headwise.methods.rhio.run import describe_unfaithful, unfaithful_pairs
    from headwise.models.model import need_tokenizer
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grounded_prompts import GroundedComposer
    from headwise.prompts.prompt import chat_arguments
    from headwise.runtime.rundir import RunDirectory

    wording, chat, arguments = words
    encoder = PieceEncoder(need_tokenizer(loaded, "making answers").tokenizer)
    composer = GroundedComposer(encoder, wording, chat, chat_arguments(arguments))
    told = describe_unfaithful(loaded, records, composer, judge, without, options)
    answering = {name: told["options"][name] for name in ANSWERING}  # answers are kept for other filters
    directory = RunDirectory(_run_folder(output), told | {"options": answering})
    with progress("answering", hidden=json) as report:
        pairs, dropped = unfaithful_pairs(loaded, records, composer, judge, without, options, directory, report)
    return kept_pairs(pairs, options), told | {"records_dropped": dropped}


def _run_folder(output: Path) -> Path:
    return output.with_name(output.name + ".run")


def _tell(kept: Kept, told: Mapping[str, Any], output: Path, json: bool) -> None:
    names = ("records_dropped", "counts", "table", "ranges")
    if json:
        o.print_json({"result": str(output), "pairs": len(kept.pairs), **{name: told[name] for name in names}})
        return
    from rich.table import Table

    from headwise.report.console import print_all

    table = Table("Answers", "Number", "Tokens", "Loss per token", "Support", title="Means; loss under the model with all its heads, in nats")
    rows = {"references": "references", "before": "unfaithful, before matching", "after": "unfaithful, kept"}
    for name, label in rows.items():
        one = kept.table[name]
        table.add_row(label, str(one["answers"]), f"{one['tokens']:.1f}", f"{one['loss']:.3f}", f"{one['support']:.1%}")
    ranges = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in kept.ranges.items())
    dropped = {**told["records_dropped"], **kept.counts}
    left = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none"
    use = f"use it     headwise train rhio MODEL --data {output} -o DIR"
    print_all(table, f"range      {ranges}", f"left out   {left}", f"pairs      {len(kept.pairs)}: {output}", use)
