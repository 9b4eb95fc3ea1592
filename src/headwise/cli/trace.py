"""`headwise trace`: where an answer comes from, token by token; `headwise trace fit`: the probe that tells."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from headwise.cli import options as o
from headwise.cli.detect import with_signature
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.methods.trace.options import FitOptions

if TYPE_CHECKING:
    from headwise.methods.trace.answer import AnswerTrace
    from headwise.models.model import Model
    from headwise.prompts.prompt import Prompt

HELP = """Say of every token of an answer whether it was read from the prompt or remembered, and where it was read.

`headwise trace fit` fits the probe that tells. A model folder that is called fit is given as ./fit."""
POISON = (
    "By how many nats the log-probability of the answer falls when the passage is left out of the prompt (leave one out: one more pass each); "
    "a passage that made the answer has a large drop"
)


class TraceGroup(TyperGroup):
    """What is no name of a command is the model whose answer is traced."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front where none is named."""
        named = bool(args) and args[0] in ("-h", "--help", *self.commands)
        return super().parse_args(ctx, args if named else ["answer", *args])


app = typer.Typer(name="trace", help=HELP, cls=TraceGroup, subcommand_metavar="[fit] [MODEL]")


@app.callback(help=HELP)
def trace() -> None:
    """Trace answers."""


@app.command("answer")
def answer(
    context: typer.Context,
    model: o.ModelName = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="A text file that holds the prompt; blank lines separate its passages, the last part is the question.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="What is asked about --documents.", show_default=False)] = None,
    documents: Annotated[
        Path | None, typer.Option(help="JSON lines with text and, if wanted, id and title.", show_default=False)
    ] = None,
    answer_file: Annotated[
        Path | None,
        typer.Option(help="A text file with the answer, whoever wrote it.", show_default="the model answers"),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="Probe that `headwise trace fit` wrote.", show_default="the one that comes with headwise")
    ] = None,
    find_poison: Annotated[
        bool, typer.Option("--find-poison", help=f"Rank the passages by how much they caused the answer. {POISON}.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens, if the model answers.")] = 64,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page: a click on a token shows its sources.", show_default=False)
    ] = None,
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    name: o.Name = None,
    json: o.Json = False,
) -> None:
    """Print an answer with each token read, remembered or unsure, and the passage and excerpt it was read from.

    read and remembered are calibrated probabilities that a token was copied from the prompt: above 0.75 it is called read, below 0.25
    remembered, and unsure in between (the probe's file may say otherwise).
    """
    _refuse(context, prompt_file, question, documents, answer_file, max_new_tokens, html)
    given = None if answer_file is None else _text(answer_file, "the answer")
    source = _sources(prompt_file, question, documents)
    loaded = o.load(model, device, dtype, revision, name)
    from headwise.methods.trace.answer import probe_for
    from headwise.prompts.answers import passages_of

    found_probe = probe_for(loaded, probe)
    prompt = _prompt(loaded, source, chat, chat_template_args)
    passages_of(prompt)
    found = _trace(loaded, prompt, given, found_probe, max_new_tokens)
    causes = _causes(loaded, found, json) if find_poison else None
    _tell(loaded, found, found_probe, causes, source, html, json)


def fit(
    model: str | None,
    data: Path | None,
    heads: Path | None,
    top: int,
    device: str,
    dtype: str,
    revision: str | None,
    name: str | None,
    output: Path | None,
    overwrite: bool,
    json: bool,
    **given: Any,
) -> None:
    """Measure questions, fit, write the probe and say how good it is."""
    if data is None or heads is None:
        raise HeadwiseError("a probe is fitted on questions and heads: give --data FILE and --heads FILE")
    path = o.output_path(output, model, "probe", overwrite)
    from headwise.methods.trace.fit import fit_probe, prepare
    from headwise.prompts.knowledge import read_knowledge
    from headwise.runtime.rundir import RunDirectory

    options = o.made(FitOptions, given)
    scores, known = o.read_scores(heads), read_knowledge(data)
    loaded = o.load(model, device, dtype, revision, name, heads=scores)
    fitting = prepare(loaded, known, scores.top(top), options)
    kept = RunDirectory(path.with_name(path.name + ".run"), fitting.describe())
    try:
        with progress("reading", hidden=json) as report:
            made = fit_probe(fitting, kept, report)
    except NoSuccessfulRunError:  # too few records can be used: there is nothing to go on with
        kept.remove()
        raise
    made.save(path, overwrite)
    kept.remove()
    if json:
        o.print_json({"probe": str(path), **made.facts})
        return
    from headwise.report.console import print_all
    from headwise.report.trace_text import probe_parts

    print_all(*probe_parts(made.facts, made.threshold, made.shift), f"probe {path}")


FIT_HELP = "Fit a probe that tells read tokens from remembered ones. What is measured is kept, so that the same command goes on after a stop."
Data = Annotated[
    Path | None,
    typer.Option(
        help="Questions with passages: NQ-open oracle or NQ-Swap layout, or JSON lines with question, answers and passage.",
        show_default=False,
    ),
]
HeadFile = Annotated[Path | None, typer.Option(help="Head file, best one of retrieval heads.", show_default=False)]
Top = Annotated[int, typer.Option(help="How many of the strongest heads the probe reads.")]
_GIVEN: dict[str, tuple[Any, Any]] = {
    "model": (o.ModelName, None), "data": (Data, None), "heads": (HeadFile, None), "top": (Top, 16), "device": (o.Device, "auto"),
    "dtype": (o.Dtype, "auto"), "revision": (o.Revision, None), "name": (o.Name, None), "output": (o.Output, None),
    "overwrite": (o.Overwrite, False), "json": (o.Json, False),
}  # fmt: skip


def _fit_command() -> Any:
    """The function behind `headwise trace fit`: its signature is made of the fields of `FitOptions`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    common = [inspect.Parameter(key, kind, default=default, annotation=hint) for key, (hint, default) in _GIVEN.items()]
    return with_signature(lambda **given: fit(**given), [*common[:4], *o.parameters_of(FitOptions), *common[4:]], FIT_HELP)


app.command("fit")(_fit_command())


class _Source:
    """What is asked: the text of a prompt, or a question about documents; and what passages are called."""

    def __init__(self, text: str | None, question: str, documents: dict[str, Any]) -> None:
        self.text, self.question, self.documents = text, question, documents

    @property
    def names(self) -> dict[str, str]:
        """Span of each document -> its id."""
        return {f"passage/{number}": key for number, key in enumerate(self.documents, 1)}


def _refuse(
    context: typer.Context,
    file: Path | None,
    question: str | None,
    documents: Path | None,
    answer: Path | None,
    limit: int,
    html: Path | None,
) -> None:
    if (file is None) == (question is None and documents is None):
        raise HeadwiseError("give either --prompt-file, or --question with --documents")
    if file is None and documents is None:
        raise HeadwiseError("the prompt has no documents, so there is no passage to trace an answer to; give --documents FILE")
    if file is None and question is None:
        raise HeadwiseError("--documents needs a --question")
    if answer is not None:
        o.refuse_unused(context, ("max_new_tokens",), "is for answers of the model itself; leave it or --answer-file out")
    if limit < 1:
        raise HeadwiseError(f"--max-new-tokens must be at least 1; got {limit}")
    if html is not None:
        o.check_file(html, "--html")


def _text(file: Path, what: str) -> str:
    from headwise.heads.files import read_text

    text = read_text(file, what)
    if not text.strip():
        raise HeadwiseError(f"{file}: {what} is empty")
    return text


def _sources(file: Path | None, question: str | None, documents: Path | None) -> _Source:
    if file is not None:
        return _Source(_text(file, "the prompt"), "", {})
    from headwise.prompts.collections import read_passages

    return _Source(None, question or "", read_passages(documents or Path()))


def _prompt(loaded: Model, source: _Source, chat: bool, chat_template_args: str | None) -> Prompt:
    from headwise.methods.trace.answer import check_length
    from headwise.prompts.answers import prompt_of_documents, prompt_of_text
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.prompt import chat_arguments

    encoder, given = PieceEncoder(loaded.tokenizer), chat_arguments(chat_template_args)
    if source.text is not None:
        prompt = prompt_of_text(encoder, source.text, chat, given)
    else:
        prompt = prompt_of_documents(encoder, source.question, list(source.documents.values()), chat, given)
    check_length(loaded, len(prompt.ids) + 1)
    return prompt


def _trace(loaded: Model, prompt: Prompt, given: str | None, probe: Any, limit: int) -> AnswerTrace:
    from headwise.methods.trace.answer import trace_answer, trace_generated
    from headwise.prompts.answers import answer_ids
    from headwise.prompts.encoder import PieceEncoder

    if given is None:
        return trace_generated(loaded, prompt, probe, limit)
    answer = answer_ids(PieceEncoder(loaded.tokenizer), prompt, given)
    # Behind the prompt: an answer that begins as the prompt does would else be taken for prompt and answer.
    return trace_answer(loaded, prompt, (*prompt.ids, *answer), probe)


def _causes(loaded: Model, found: AnswerTrace, hidden: bool) -> dict[str, float]:
    from headwise.evaluation.leave_out import leave_one_out

    with progress("leaving passages out", hidden=hidden) as report:
        return leave_one_out(loaded, found.prompt, found.ids, list(found.passages), report)


def _tell(
    loaded: Model, found: AnswerTrace, probe: Any, causes: dict[str, float] | None, source: _Source, html: Path | None, json: bool
) -> None:
    from headwise.cli.trace_data import trace_data

    data = trace_data(loaded, found, probe, causes, source.names)
    if html is not None:
        from headwise.report.trace_page import write_page

        write_page(data, html)
    if json:
        o.print_json(data | {"page": None if html is None else str(html)})
        return
    from headwise.report.console import print_all
    from headwise.report.trace_text import trace_parts

    print_all(*trace_parts(data, POISON))
    if html is not None:
        print_all(f"page {html}")
